"""The training loop: reproducible, resumable, and loud where it diverges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from jaxmaml import dispatch
from tests import problems

SAMPLE = jaxmaml.tasks.sinusoid(5, 5)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def learner():
    return jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=2)


def fit(learner, state, num_steps, **options):
    return jaxmaml.fit(learner, state, SAMPLE, KEY, num_steps=num_steps, num_tasks=3, **({"progress": False} | options))


def test_fit_is_the_loop_written_out(quick_compiles, learner):
    state = learner.init(problems.mlp_params())
    fitted, history = fit(learner, state, 4)
    losses = []
    for step in range(4):
        keys = jax.random.split(jax.random.fold_in(KEY, step), 3)
        state, info = jax.jit(learner.update)(state, jax.vmap(SAMPLE)(keys))
        losses.append(info.query_loss.mean())
    chex.assert_trees_all_close(fitted, state, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(history.query_loss, losses, rtol=1e-5)
    assert history.support_loss.shape == (4, 2)
    assert history.grad_norm.shape == (4,)


def test_halves_and_other_dispatches_give_the_same_bits(learner):
    state = learner.init(problems.mlp_params())
    whole, history = fit(learner, state, 12, steps_per_dispatch=4)
    half, first = fit(learner, state, 5, steps_per_dispatch=4)
    both, second = fit(learner, half, 7, steps_per_dispatch=4)
    chex.assert_trees_all_equal(whole, both)
    np.testing.assert_array_equal(history.query_loss, np.concatenate([first.query_loss, second.query_loss]))
    other, _ = fit(learner, state, 12, steps_per_dispatch=1)
    chex.assert_trees_all_equal(whole, other)


def test_tasks_are_drawn_ahead_only_where_they_are_small():
    """Blocks of steps whose tasks are drawn at once: the most that divide a dispatch, in 128 kB."""

    def ahead(num_points, capacity):
        sample = jaxmaml.tasks.sinusoid(num_points, num_points)
        return dispatch._steps_ahead(jax.eval_shape(lambda: dispatch.draw(sample, KEY, 4, 0)), capacity)

    assert [ahead(8, capacity) for capacity in (1, 7, 12, 100, 4096)] == [1, 7, 12, 10, 16]
    assert ahead(400, 100) == 5
    assert ahead(4000, 100) == 1


def test_equal_calls_compile_once():
    traces = []

    def loss_fn(params, batch):
        traces.append(1)
        return problems.mlp_loss(params, batch)

    learner = jaxmaml.maml(loss_fn, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)
    state, _ = fit(learner, learner.init(problems.mlp_params()), 6, steps_per_dispatch=2)
    count = len(traces)
    fit(learner, state, 6, steps_per_dispatch=2)
    assert len(traces) == count


def test_on_dispatch_sees_every_part(learner):
    seen = []
    state = learner.init(problems.mlp_params())
    fitted, history = fit(
        learner, state, 7, steps_per_dispatch=3, on_dispatch=lambda state, part: seen.append((state, part))
    )
    assert [int(state.step) for state, _ in seen] == [3, 6, 7]
    np.testing.assert_array_equal(np.concatenate([part.query_loss for _, part in seen]), history.query_loss)
    chex.assert_trees_all_equal(seen[-1][0], fitted)


@pytest.mark.parametrize("culprit", ["loss", "gradient"])
def test_non_finite_steps_are_not_taken_and_nothing_is_lost(culprit):
    """The loss turns NaN, or only its gradient does, once theta passes 0.5."""

    def loss_fn(params, batch):
        theta = params["theta"]
        if culprit == "loss":
            return jnp.where(theta > 0.5, jnp.nan, -theta)
        return -theta + 0.0 * jnp.sqrt(jnp.maximum(0.5 - theta, 0.0))

    learner = jaxmaml.maml(loss_fn, optax.sgd(0.0), optax.sgd(0.125), num_inner_steps=1, derivative="first_order")
    state = learner.init({"theta": jnp.zeros(())})
    with pytest.raises(jaxmaml.NonFiniteError, match=r"non-finite at outer step [45]") as caught:
        fit(learner, state, 100, steps_per_dispatch=10)
    assert isinstance(caught.value, FloatingPointError)
    failed_at = int(caught.value.state.step)
    assert float(caught.value.state.params["theta"]) == failed_at * 0.125
    assert caught.value.history.query_loss.shape == (failed_at + 1,)
    assert np.isfinite(caught.value.history.query_loss[:-1]).all()


def test_a_step_to_infinity_is_not_taken():
    """Loss and gradient are finite; the outer step size is not."""
    explode = optax.sgd(lambda count: jnp.where(count == 2, jnp.inf, 0.1))
    learner = jaxmaml.maml(problems.quadratic_loss, optax.sgd(0.1), explode, num_inner_steps=1)
    state = learner.init({"theta": jnp.ones(2)})
    with pytest.raises(jaxmaml.NonFiniteError, match="outer step 2") as caught:
        jaxmaml.fit(
            learner,
            state,
            lambda key: jaxmaml.Task(jnp.zeros(2), jnp.zeros(2)),
            KEY,
            num_steps=3,
            num_tasks=1,
            progress=False,
        )
    assert np.isfinite(caught.value.state.params["theta"]).all()


def test_large_arrays_of_a_sampler_are_passed_and_not_compiled_in():
    images = np.random.default_rng(0).integers(0, 255, (8, 6, 8, 8, 1), np.uint8)
    sample = jaxmaml.tasks.image_episodes(images, num_ways=2, num_shots=1, num_queries=1)
    assert jax.tree.leaves(sample)[0].shape == images.shape
    loss_fn = jaxmaml.cross_entropy(lambda p, x: x.reshape(x.shape[0], -1) @ p["w"])
    learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    _, history = jaxmaml.fit(
        learner,
        learner.init({"w": jnp.zeros((64, 2))}),
        sample,
        KEY,
        num_steps=3,
        num_tasks=2,
        progress=False,
    )
    assert history.aux["accuracy"].shape == (3,)


def test_progress_is_shown_in_a_log_file_too(learner, capsys, monkeypatch):
    monkeypatch.setattr("jaxmaml.progress._SECONDS_BETWEEN_LINES", -1.0)
    fit(learner, learner.init(problems.mlp_params()), 2, steps_per_dispatch=1, progress=True)
    output = capsys.readouterr().out
    assert "outer step 1/2" in output
    assert "query loss" in output
    fit(learner, learner.init(problems.mlp_params()), 2, steps_per_dispatch=1)
    assert capsys.readouterr().out == ""
