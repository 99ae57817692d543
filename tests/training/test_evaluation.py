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


# ---- what learners draw, and what losses report ----


def keyed_learner(mesh=None):
    """Noise in the start, and in the batch of every step."""
    collect = jaxmaml.supports.collect(lambda params, data, key: data + jax.random.normal(key, data.shape))
    learner = problems.maml(
        problems.quadratic_loss,
        num_inner_steps=2,
        start=jaxmaml.starts.noise(0.1),
        supports=collect,
        queries=collect,
        mesh=mesh,
    )
    return learner, learner.init({"theta": jnp.zeros(2)})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_every_task_draws_its_own_in_any_chunks_and_on_a_mesh(impl):
    tasks = jaxmaml.Task(jnp.zeros((5, 2)), jnp.zeros((5, 2)))
    key = jax.random.key(0, impl=impl)
    results = []
    for mesh, chunk_size in ((None, None), (None, 2), (None, 1), (jaxmaml.task_mesh(), 2)):
        learner, state = keyed_learner(mesh)
        found = jaxmaml.evaluate(
            learner, problems.quadratic_loss, state, tasks, key, num_inner_steps=2, chunk_size=chunk_size
        )
        results.append(np.asarray(found.query_loss.per_task))
    assert len(np.unique(results[0])) == results[0].size
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-6)


def test_every_scalar_that_a_loss_reports_has_a_curve():
    def loss_fn(params, batch):
        loss = problems.quadratic_loss(params, batch)
        return loss, {"psnr": -10 * jnp.log10(loss), "inner": {"steps": jnp.array(3)}, "image": params["theta"]}

    learner = problems.maml(loss_fn, optax.sgd(0.5), num_inner_steps=1)
    state = learner.init({"theta": jnp.zeros(2)})
    centres = jnp.array([[1.0, 0.0], [0.0, -2.0]])
    result = jaxmaml.evaluate(learner, loss_fn, state, jaxmaml.Task(centres, centres), num_inner_steps=2)
    assert set(result.aux) == {"psnr", "inner/steps"}
    np.testing.assert_allclose(result.aux["psnr"].per_task, -10 * np.log10(result.query_loss.per_task), rtol=1e-5)
    np.testing.assert_array_equal(result.aux["inner/steps"].mean, 3.0)


def test_validation_chooses_by_a_score_of_the_users():
    """The score falls as the loss falls, so that the first validation is the best."""

    def loss_fn(params, batch):
        loss = problems.quadratic_loss(params, batch)
        return loss, {"score": loss}

    learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.05), num_inner_steps=1)
    validate = functools.partial(
        jaxmaml.Validation, loss_fn, sample, jax.random.key(1), num_inner_steps=1, num_tasks=3, every=2
    )
    chosen = {}
    for score in ("score", "query_loss"):
        state, _ = jaxmaml.fit(
            learner,
            learner.init({"theta": jnp.full(2, 5.0)}),
            sample,
            jax.random.key(0),
            num_steps=6,
            num_tasks=2,
            steps_per_dispatch=2,
            progress=False,
            validation=validate(score=score),
        )
        chosen[score] = int(state.step)
    assert chosen == {"score": 2, "query_loss": 6}
