"""Learned rates of parameters, tensors, groups and all leaves, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

PARAMS = {"net": {"w": jnp.array([0.3, -0.7]), "b": jnp.array(0.2)}, "head": jnp.array([0.5, 0.1])}


def group_of(path):
    return "net" if path.startswith("net/") else "rest"


def loss_fn(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs * params["net"]["w"][None] + params["net"]["b"])
    return jnp.mean((hidden @ params["head"] - targets) ** 2)


def tasks(num_tasks=2):
    rng = np.random.default_rng(0)
    batch = lambda: (jnp.asarray(rng.normal(size=(num_tasks, 5, 2))), jnp.asarray(rng.normal(size=(num_tasks, 5))))  # noqa: E731
    return jaxmaml.Task(batch(), batch())


def expand(per, rates, params, step):
    """The rate of each leaf at inner step `step`."""
    rates = jax.tree.map(lambda rate: rate[min(step, len(rate) - 1)], rates)
    if per == "scalar":
        return jax.tree.map(lambda _: rates, params)
    if per is group_of:
        return {"net": {"w": rates["net"], "b": rates["net"]}, "head": rates["rest"]}
    return rates


def clipped(grads, clips):
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    return jax.tree.map(lambda g: g * jnp.where(norm > 0.1, 0.1 / norm, 1.0), grads) if clips else grads


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("per", ["parameter", "tensor", "scalar", group_of])
def test_meta_gradient_of_rates_is_the_plain_loops(x64, per, clips):
    """Of two rates for three inner steps: the last one is used again."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
    rule = jaxmaml.rules.learned_rates(
        (0.05, 0.2), per=per, num_steps=2, transform=jaxmaml.clip_by_global_norm(0.1) if clips else None
    )
    learner = problems.maml(loss_fn, rule, num_inner_steps=3)
    state = learner.init(params)

    def meta_loss(params, rates):
        total = 0.0
        for i in range(2):
            support, query = jax.tree.map(lambda leaf, i=i: leaf[i], tuple(tasks()))
            fast = params
            for step in range(3):
                grads = clipped(jax.grad(loss_fn)(fast, support), clips)
                fast = jax.tree.map(lambda p, a, g: p - a * g, fast, expand(per, rates, params, step), grads)
            total += loss_fn(fast, query) / 2
        return total

    expected = jax.grad(meta_loss, argnums=(0, 1))(params, state.rule_params)
    new, _ = learner.update(state, tasks())
    ours = jax.tree.map(jnp.subtract, (state.params, state.rule_params), (new.params, new.rule_params))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


def test_rates_of_groups_have_their_names_and_dtype():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS["net"])
    rates = jaxmaml.rules.learned_rates(0.1, per=group_of, num_steps=3).init_params({**PARAMS, "net": half})
    assert {name: (rate.shape, rate.dtype) for name, rate in rates.items()} == {
        "net": ((3,), jnp.bfloat16),
        "rest": ((3,), jnp.float32),
    }


@pytest.mark.parametrize("per", ["parameter", "tensor", "scalar", group_of])
def test_rates_stay_between_their_bounds(per):
    free, bound = (
        jaxmaml.meta_sgd(loss_fn, (0.05, 0.2), optax.sgd(20.0), num_inner_steps=2, per=per, bounds=bounds)
        for bounds in (None, (0.0, 0.25))
    )
    state, _ = free.update(free.init(PARAMS), tasks())
    inside, _ = bound.update(bound.init(PARAMS), tasks())
    left = [np.asarray(rate) for rate in jax.tree.leaves(state.rule_params)]
    assert any((rate < 0).any() or (rate > 0.25).any() for rate in left)
    for a, b in zip(left, jax.tree.leaves(inside.rule_params), strict=True):
        np.testing.assert_array_equal(np.clip(a, 0.0, 0.25), b)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(inside.params), strict=True):
        np.testing.assert_array_equal(a, b)
