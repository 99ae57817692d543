"""Evaluation: curves, intervals, and independence of chunks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles")


def quadratic_learner(rate=0.5):
    learner = problems.maml(problems.quadratic_loss, optax.sgd(rate), num_inner_steps=1)
    return learner, learner.init({"theta": jnp.zeros(2)})


def sample(key):
    centre = jax.random.normal(key, (2,))
    return jaxmaml.Task(centre, centre + 1.0)


def test_closed_form_after_every_step():
    learner, state = quadratic_learner()
    centres = jnp.array([[1.0, 0.0], [0.0, -2.0], [3.0, 3.0]])
    result = jaxmaml.evaluate(
        learner, problems.quadratic_loss, state, jaxmaml.Task(centres, centres), num_inner_steps=4, chunk_size=2
    )
    shrink = 0.25 ** np.arange(5)
    per_task = 0.5 * np.sum(np.square(centres), 1)[:, None] * shrink
    np.testing.assert_allclose(result.query_loss.per_task, per_task, rtol=1e-6)
    np.testing.assert_allclose(result.query_loss.mean, per_task.mean(0), rtol=1e-6)
    np.testing.assert_allclose(result.query_loss.ci95, 1.96 * per_task.std(0) / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(result.support_loss.per_task, per_task[:, :-1], rtol=1e-6)
    assert result.accuracy is None


def test_interval_of_an_accuracy():
    """Accuracies of 0 and 1 at the frequency p: the interval is 1.96 sqrt(p (1 - p) / N)."""
    loss_fn = jaxmaml.cross_entropy(lambda params, x: x * params["gain"])
    learner = problems.maml(loss_fn, optax.sgd(0.0), num_inner_steps=1)
    logits = jnp.eye(2)[jnp.array([0] * 30 + [1] * 10)][:, None]
    tasks = jaxmaml.Task((logits, jnp.zeros((40, 1), int)), (logits, jnp.zeros((40, 1), int)))
    result = jaxmaml.evaluate(learner, loss_fn, learner.init({"gain": 5.0}), tasks, num_inner_steps=2)
    np.testing.assert_allclose(result.accuracy.mean, 0.75)
    np.testing.assert_allclose(result.accuracy.ci95, 1.96 * np.sqrt(0.75 * 0.25 / 40), rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_chunks_change_nothing(chunk_size):
    learner, state = quadratic_learner()
    evaluate = functools.partial(
        jaxmaml.evaluate,
        learner,
        problems.quadratic_loss,
        state,
        sample,
        jax.random.key(3),
        num_inner_steps=2,
        num_tasks=30,
    )
    chex.assert_trees_all_close(evaluate(chunk_size=chunk_size), evaluate(chunk_size=30), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_any_kind_of_key_draws_the_same_tasks_in_other_chunks(impl):
    learner = problems.maml(problems.mlp_loss)
    state, sample = learner.init(problems.mlp_params()), jaxmaml.tasks.sinusoid(5, 5)
    one, three, all_ = (
        jaxmaml.evaluate(
            learner,
            problems.mlp_loss,
            state,
            sample,
            jax.random.key(4, impl=impl),
            num_inner_steps=1,
            num_tasks=7,
            chunk_size=chunk_size,
        ).query_loss.per_task
        for chunk_size in (1, 3, None)
    )
    np.testing.assert_allclose(three, one, rtol=1e-5)
    np.testing.assert_allclose(all_, one, rtol=1e-5)


def test_the_same_key_draws_the_same_tasks_and_jit_changes_nothing():
    learner, state = quadratic_learner()
    evaluate = functools.partial(
        jaxmaml.evaluate, learner, problems.quadratic_loss, tasks=sample, num_inner_steps=3, num_tasks=10
    )
    jitted = jax.jit(chex.assert_max_traces(lambda state, key: evaluate(state, key=key), n=1))
    first = jitted(state, jax.random.key(0))
    chex.assert_trees_all_equal(first, jitted(state, jax.random.key(0)))
    chex.assert_trees_all_close(first, evaluate(state, key=jax.random.key(0)), rtol=1e-6)
    other = jitted(state, jax.random.key(1))
    assert not np.allclose(first.query_loss.per_task, other.query_loss.per_task)


def test_equal_calls_compile_once():
    traces = []

    def loss_fn(params, centre):
        traces.append(1)
        return problems.quadratic_loss(params, centre)

    learner = problems.maml(loss_fn, num_inner_steps=1)
    state = learner.init({"theta": jnp.zeros(2)})
    counts = []
    for seed in range(3):
        jaxmaml.evaluate(learner, loss_fn, state, sample, jax.random.key(seed), num_inner_steps=2, num_tasks=5)
        counts.append(len(traces))
    assert counts[0] == counts[-1]


def test_thousands_of_tasks_in_little_memory():
    """Memory follows the chunk, not the number of tasks."""
    loss_fn = problems.mlp_loss
    learner = problems.maml(loss_fn)
    state = learner.init(problems.mlp_params())

    def temporary(num_tasks):
        def run(state, key):
            return jaxmaml.evaluate(
                learner,
                loss_fn,
                state,
                jaxmaml.tasks.sinusoid(5, 200),
                key,
                num_inner_steps=3,
                num_tasks=num_tasks,
                chunk_size=10,
            ).query_loss.mean

        return jax.jit(run).lower(state, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(5000) < temporary(100) + 5000 * 4 * 20
