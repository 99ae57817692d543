"""Half precision: sums over tasks do not overflow, and what is mixed with float32 works."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems


def loss_fn(params, batch):
    return jnp.mean((params["w"] - batch) ** 2)


@pytest.mark.parametrize("axes", [{}, {"chunk_size": None}, {"chunk_size": 100}, {"derivative": "reverse"}], ids=str)
@pytest.mark.parametrize("centre", [6.3, 25.2])
def test_many_tasks_of_float16(axes, centre):
    """The sums over 2,048 tasks of the losses, and of the gradients where the centre is far, are above 65,504."""
    tasks = jax.tree.map(lambda x: jnp.full((2048, 2), x, jnp.float16), jaxmaml.Task(centre, centre))
    learner = problems.maml(loss_fn, optax.sgd(0.0), 1, **axes)
    state = learner.init({"w": jnp.zeros((), jnp.float16)})
    new, info = jax.jit(learner.update)(state, tasks)
    assert new.params["w"].dtype == jnp.float16
    np.testing.assert_allclose(new.params["w"].astype(float), 2 * centre, rtol=2e-3)
    np.testing.assert_allclose(jnp.mean(info.query_loss), centre**2, rtol=2e-3)
    np.testing.assert_allclose(info.grad_norm, 2 * centre, rtol=2e-3)


def test_the_norm_of_a_long_gradient_of_float16():
    learner = problems.maml(lambda p, b: jnp.mean(b) * 300 * jnp.sum(p["w"]), optax.sgd(0.0), 1)
    tasks = jaxmaml.Task(jnp.ones((2, 1), jnp.float16), jnp.ones((2, 1), jnp.float16))
    _, info = learner.update(learner.init({"w": jnp.zeros(4, jnp.float16)}), tasks)
    np.testing.assert_allclose(info.grad_norm, 600, rtol=1e-3)


def test_implicit_derivatives_of_mixed_dtypes():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(())}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    fit = lambda params, x: jnp.mean((x @ params["w"] + params["b"] - 1) ** 2)  # noqa: E731
    learner = jaxmaml.imaml(fit, optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=5, tolerance=1e-4)
    tasks = jaxmaml.Task(x, x[::-1])
    after, info = jax.jit(learner.update)(learner.init(params), tasks)
    assert jax.tree.map(lambda leaf: leaf.dtype, after.params) == jax.tree.map(lambda leaf: leaf.dtype, params)
    assert (info.diagnostics.residual < 0.05).all()
    wide, expected = (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (params, after.params))
    exact, _ = jax.jit(learner.update)(learner.init(wide), tasks)
    for name in params:
        np.testing.assert_allclose(expected[name], exact.params[name], atol=0.02)
