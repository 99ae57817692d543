"""What the outer loop descends, with a start and with rules that count steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles", "x64")


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x * params["w"] + params["context"]) * params["v"] - y) ** 2)


PARAMS = {"w": np.array(0.7), "v": np.array(1.2), "context": np.array(0.4)}


def tasks():
    x = np.random.default_rng(0).normal(size=(2, 2, 5))
    return jaxmaml.Task((jnp.asarray(x[0]), jnp.sin(x[0])), (jnp.asarray(x[1]), jnp.sin(x[1])))


def zero_context(params, support):
    return {**params, "context": jnp.zeros_like(params["context"])}


def twice_w(params, support):
    return {**params, "w": 2 * params["w"] + jnp.mean(support[0])}


RATES = optax.sgd(optax.exponential_decay(0.3, 1, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("inner", [optax.sgd(0.2), RATES, optax.adam(0.1, eps_root=1e-8)], ids=["sgd", "decay", "adam"])
@pytest.mark.parametrize("start", [None, zero_context, twice_w], ids=["none", "zero", "twice"])
def test_the_leader_goes_on_from_where_adaptation_ended(inner, start):
    """From phi_K, in step K of the inner rule and with its state; not from a new start, nor in step 0."""

    def descend(params, batches, state=None):
        state = inner.init(params) if state is None else state
        for batch in batches:
            updates, state = inner.update(jax.grad(loss_fn)(params, batch), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    def objective(params):
        total = 0.0
        for index in range(2):
            support, query = jax.tree.map(lambda leaf, index=index: leaf[index], tasks())
            both = jax.tree.map(lambda s, q: jnp.concatenate([s, q]), support, query)
            chaser, state = descend(params if start is None else start(params, support), [support] * 2)
            leader, _ = descend(chaser, [both] * 3, state)
            total += 0.5 * sum(jnp.sum((chaser[n] - jax.lax.stop_gradient(leader[n])) ** 2) for n in chaser)
        return total / 2

    learner = problems.maml(loss_fn, inner, 2, start=start, objective=jaxmaml.objectives.chaser(3))
    expected = problems.flat(jax.grad(objective)(jax.tree.map(jnp.asarray, PARAMS)))
    np.testing.assert_allclose(problems.meta_gradient(learner, PARAMS, tasks()), expected, rtol=1e-9, atol=1e-12)


def test_cavia_with_a_chaser():
    """The context of the leader begins where that of the task ended, and not at zero."""
    chaser = jaxmaml.objectives.chaser(1)
    learner = jaxmaml.cavia(
        loss_fn, optax.sgd(0.2), optax.sgd(1.0), num_inner_steps=1, context="context", objective=chaser
    )

    def objective(params):
        total = 0.0
        for index in range(2):
            support, query = jax.tree.map(lambda leaf, index=index: leaf[index], tasks())
            both = jax.tree.map(lambda s, q: jnp.concatenate([s, q]), support, query)
            gradient = jax.grad(lambda context, batch: loss_fn({**params, "context": context}, batch))
            chaser = -0.2 * gradient(jnp.zeros(()), support)
            leader = chaser - 0.2 * gradient(chaser, both)
            total += 0.25 * (chaser - jax.lax.stop_gradient(leader)) ** 2
        return total

    expected = problems.flat(jax.grad(objective)(jax.tree.map(jnp.asarray, PARAMS)))
    np.testing.assert_allclose(problems.meta_gradient(learner, PARAMS, tasks()), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("start", [zero_context, twice_w], ids=["zero", "twice"])
def test_before_adaptation_there_is_the_start(start):
    objective = jaxmaml.objectives.before_adaptation
    learner = problems.maml(loss_fn, start=start, objective=objective)

    def mean(params):
        of_task = jax.vmap(lambda task: loss_fn(start(params, task.support), task.query))
        return jnp.mean(of_task(tasks()))

    expected = problems.flat(jax.grad(mean)(jax.tree.map(jnp.asarray, PARAMS)))
    np.testing.assert_allclose(problems.meta_gradient(learner, PARAMS, tasks()), expected, rtol=1e-10, atol=1e-13)
