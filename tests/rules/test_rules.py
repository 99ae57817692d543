"""Inner rules: the safe clip, and the lifting of optax transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_clip_equals_optax_away_from_zero(x64, scale):
    grads = {"a": scale * jnp.array([3.0, -1.0]), "b": scale * jnp.array([[2.0]])}
    ours, theirs = jaxmaml.clip_by_global_norm(2.0), optax.clip_by_global_norm(2.0)

    def clipped(transform):
        return lambda g: jax.tree.leaves(transform.update(g, transform.init(g))[0])

    for a, b in zip(jax.tree.leaves(clipped(ours)(grads)), jax.tree.leaves(clipped(theirs)(grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    jacobians = (problems.flat(jax.jacobian(clipped(t))(grads)) for t in (ours, theirs))
    np.testing.assert_allclose(*jacobians, rtol=1e-11, atol=1e-14)


def test_a_task_at_its_optimum_does_not_make_the_meta_gradient_nan():
    learner = problems.maml(
        problems.quadratic_loss, optax.chain(jaxmaml.clip_by_global_norm(1.0), optax.sgd(0.1)), num_inner_steps=2
    )
    tasks = jaxmaml.Task(jnp.zeros((1, 2)), jnp.ones((1, 2)))
    gradient = problems.meta_gradient(learner, {"theta": jnp.zeros(2)}, tasks)
    np.testing.assert_allclose(gradient, -0.81 * np.ones(2), rtol=1e-6)


def test_clip_keeps_half_precision():
    clip = jaxmaml.clip_by_global_norm(1.0)
    updates, _ = clip.update({"a": jnp.ones(4, jnp.bfloat16)}, clip.init(None))
    assert updates["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(updates["a"], np.float32), 0.5)


def test_a_line_search_in_first_order():
    """Rules that ask for the value, the gradient and the function itself get them."""
    learner = problems.maml(
        problems.quadratic_loss,
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)),
        num_inner_steps=1,
        derivative="first_order",
    )
    fast_params, _ = learner.adapt(learner.init({"theta": jnp.zeros(2)}), jnp.ones(2))
    np.testing.assert_allclose(fast_params["theta"], 1.0)
