"""Batches from outside of the device: the same steps, opened at the right one, and nothing lost where they end."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

LEARNER = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)


def batch_of(step, num_tasks=3, num_points=4):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(2, num_tasks, num_points, 1)).astype(np.float32)
    return jaxmaml.Task(*(jaxmaml.Batch(part, np.sin(part + rng.normal())) for part in x))


def opened(end=1000, seen=None, change=lambda step, tasks: tasks):
    def open_at(first_step):
        if seen is not None:
            seen.append(first_step)
        for step in range(first_step, end):
            yield change(step, batch_of(step))

    return jaxmaml.tasks.Batches(open_at)


def fit(batches, num_steps, state=None, learner=LEARNER, **options):
    state = learner.init(problems.mlp_params()) if state is None else state
    return jaxmaml.fit(
        learner, state, batches, num_steps=num_steps, **({"steps_per_dispatch": 3, "progress": False} | options)
    )


def test_fit_is_the_loop_written_out():
    fitted, history = fit(opened(), 7)
    state, losses = LEARNER.init(problems.mlp_params()), []
    for step in range(7):
        state, info = jax.jit(LEARNER.update)(state, batch_of(step))
        losses.append(info.query_loss.mean())
    chex.assert_trees_all_close(fitted, state, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(history.query_loss, losses, rtol=1e-5)


def test_halves_and_other_dispatches_are_equal_to_the_bit():
    seen = []
    whole, _ = fit(opened(), 8)
    half, _ = fit(opened(seen=seen), 5)
    both, _ = fit(opened(seen=seen), 3, state=half)
    assert seen == [0, 5]
    chex.assert_trees_all_equal(whole, both)
    chex.assert_trees_all_equal(whole, fit(opened(), 8, steps_per_dispatch=1)[0])
    chex.assert_trees_all_equal(whole, fit(opened(), 8, steps_per_dispatch=100)[0])


def test_it_is_traced_once():
    traces = []

    def loss_fn(params, batch):
        traces.append(1)
        return problems.mlp_loss(params, batch)

    learner = jaxmaml.maml(loss_fn, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)
    fit(opened(), 3, learner=learner)
    count = len(traces)
    fit(opened(), 8, learner=learner)
    assert len(traces) == count


def test_a_list_and_jax_arrays_will_do():
    tasks = [jax.tree.map(jnp.asarray, batch_of(step)) for step in range(4)]
    found, _ = fit(jaxmaml.tasks.Batches(lambda first_step: tasks[first_step:]), 4)
    chex.assert_trees_all_equal(found, fit(opened(), 4)[0])


def test_float64(x64):
    learner = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)
    wide = opened(change=lambda step, tasks: jax.tree.map(np.float64, tasks))
    _, history = fit(wide, 2, state=learner.init(problems.mlp_params(jnp.float64)), learner=learner)
    assert history.query_loss.dtype == np.float64


def test_resuming_opens_at_the_right_step(tmp_path):
    saved, seen = jaxmaml.Checkpoints(tmp_path, every=3), []
    with pytest.raises(jaxmaml.OutOfTasksError, match=r"ran out at outer step 5: .* goes on to step 8") as caught:
        fit(opened(end=5, seen=seen), 8, checkpoints=saved)
    assert isinstance(caught.value, ValueError)
    assert int(caught.value.state.step) == 5
    assert caught.value.history.query_loss.shape == (5,)
    resumed, history = fit(opened(seen=seen), 8, checkpoints=saved)
    assert seen == [0, 5]
    assert history.query_loss.shape == (3,)
    chex.assert_trees_all_equal(resumed, fit(opened(), 8)[0])
    again, history = fit(opened(), 8, checkpoints=saved)
    chex.assert_trees_all_equal(again, resumed)
    assert history.query_loss.shape == (0,)


def test_nothing_at_all():
    with pytest.raises(jaxmaml.OutOfTasksError, match="ran out at outer step 0") as caught:
        fit(opened(end=0), 2)
    assert int(caught.value.state.step) == 0


def test_an_error_of_the_iterator_surfaces_and_loses_nothing(tmp_path):
    def stumble(step, tasks):
        if step == 4:
            raise OSError("a disk that is gone, say")
        return tasks

    with pytest.raises(OSError, match="a disk that is gone"):
        fit(opened(change=stumble), 8, checkpoints=jaxmaml.Checkpoints(tmp_path, every=1000))
    state = LEARNER.init(problems.mlp_params())
    assert int(jaxmaml.restore(tmp_path, state).step) == 4


BAD = {
    "other shapes": (lambda step, tasks: batch_of(step, num_points=5), ValueError, "outer step 2: every batch must be"),
    "another structure": (lambda step, tasks: jaxmaml.Task(*map(tuple, tasks)), ValueError, "outer step 2: every"),
    "no task": (lambda step, tasks: tuple(tasks), TypeError, "outer step 2: `tasks` must be a jaxmaml.Task"),
    "weights of zero": (
        lambda step, tasks: tasks._replace(support=jaxmaml.WeightedBatch(*tasks.support, np.zeros((3, 4), np.float32))),
        ValueError,
        "outer step 2: `tasks.support.weights` must have a positive weight",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches(case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=message):
        fit(opened(change=lambda step, tasks: change(step, tasks) if step == 2 else tasks), 4)


def test_a_loss_that_padding_moves_is_refused():
    padded = lambda step, tasks: jaxmaml.Task(  # noqa: E731
        *(jaxmaml.WeightedBatch(*batch, np.ones((3, 4), np.float32)) for batch in tasks)
    )
    learner = jaxmaml.maml(
        lambda params, batch: problems.mlp_loss(params, batch[:2]), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1
    )
    with pytest.raises(ValueError, match="must not change with the padding"):
        fit(opened(change=padded), 2, learner=learner)


@pytest.mark.parametrize("given", [{"key": jax.random.key(0)}, {"num_tasks": 3}])
def test_what_is_of_a_sampler(given):
    with pytest.raises(TypeError, match=f"`{next(iter(given))}` is for a sampler"):
        fit(opened(), 1, **given)


def test_a_sampler_needs_both():
    with pytest.raises(TypeError, match="`key` must be a single PRNG key"):
        fit(jaxmaml.tasks.sinusoid(), 1, num_tasks=2)
    with pytest.raises(TypeError, match="`num_tasks` must be an int"):
        fit(jaxmaml.tasks.sinusoid(), 1, key=jax.random.key(0))


def test_the_reader_ends_with_the_run():
    def endless(first_step):
        while True:
            yield batch_of(0)

    fit(jaxmaml.tasks.Batches(endless), 4)
    assert not [thread for thread in threading.enumerate() if thread.name == "jaxmaml.tasks.Batches"]
