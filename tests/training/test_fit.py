"""The training loop: reproducible, resumable, and loud where it diverges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich

import jaxmaml
from jaxmaml.training.progress import track
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


def test_halves_and_other_dispatches_are_equal_to_the_bit(learner):
    state = learner.init(problems.mlp_params())
    whole, history = fit(learner, state, 12, steps_per_dispatch=4)
    half, first = fit(learner, state, 5, steps_per_dispatch=4)
    both, second = fit(learner, half, 7, steps_per_dispatch=4)
    chex.assert_trees_all_equal(whole, both)
    np.testing.assert_array_equal(history.query_loss, np.concatenate([first.query_loss, second.query_loss]))
    other, _ = fit(learner, state, 12, steps_per_dispatch=1)
    chex.assert_trees_all_equal(whole, other)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_any_kind_of_key_is_equal_to_the_bit_in_other_dispatches(impl):
    """One step a dispatch among them; `rbg` keys draw another batch than one by one."""
    # Of its own, for another test has compiled the fixture's with few optimizations.
    learner = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=2)
    state, key = learner.init(problems.mlp_params()), jax.random.key(3, impl=impl)
    options = {"num_steps": 6, "num_tasks": 3, "progress": False}
    whole, _ = jaxmaml.fit(learner, state, SAMPLE, key, steps_per_dispatch=100, **options)
    for steps_per_dispatch in (1, 2, 5):
        other, _ = jaxmaml.fit(learner, state, SAMPLE, key, steps_per_dispatch=steps_per_dispatch, **options)
        chex.assert_trees_all_equal(whole, other)


def test_metrics_are_means_in_full_precision(quick_compiles):
    """NumPy adds up bfloat16 in bfloat16: of 2,000 losses around 3 nothing would be left but the first ones."""
    learner = jaxmaml.maml(lambda p, b: jnp.mean(b) + 0 * p["w"], optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    state = learner.init({"w": jnp.zeros((), jnp.bfloat16)})

    def sample(key):
        x = 3 + jax.random.uniform(key, (2,), jnp.bfloat16)
        return jaxmaml.Task(x, x)

    seen = []
    _, history = jaxmaml.fit(
        learner,
        state,
        sample,
        KEY,
        num_steps=2000,
        num_tasks=1,
        steps_per_dispatch=2000,
        progress=False,
        metrics=lambda step, values: seen.append(values["query_loss"]),
    )
    assert history.query_loss.dtype == jnp.bfloat16
    np.testing.assert_allclose(seen, np.mean(history.query_loss.astype(np.float64)), rtol=1e-6)


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


def test_the_optimizer_state_is_looked_at():
    """A second moment that overflows leaves the parameters as they are, and finite, for ever."""
    learner = jaxmaml.maml(lambda p, b: 1e25 * p["w"], optax.sgd(0.0), optax.adam(0.1), num_inner_steps=1)
    state = learner.init({"w": jnp.ones(())})
    with pytest.raises(jaxmaml.NonFiniteError, match="outer step 0") as caught:
        fit(learner, state, 3)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(caught.value.state))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [1, 7, -1])
def test_support_labels_out_of_range_are_found(wrong):
    """The query's are right: without their gradient, the other examples would teach something all the same."""

    def sample(key):
        x = jax.random.normal(key, (4, 3))
        labels = jnp.array([0, 1, 2, 0])
        return jaxmaml.Task(
            jaxmaml.Batch(x, labels.at[2].add(wrong) if wrong > 0 else labels.at[2].set(wrong)), (x, labels)
        )

    loss_fn = jaxmaml.cross_entropy(lambda params, x: x @ params["w"])
    learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    state = learner.init({"w": jnp.ones((3, 3))})
    cause = r"support losses \[nan\].*labels outside of 0 ... num_ways - 1, an inner rule whose derivative"
    with pytest.raises(jaxmaml.NonFiniteError, match=cause):
        jaxmaml.fit(learner, state, sample, KEY, num_steps=3, num_tasks=2, progress=False)
    result = jaxmaml.evaluate(learner, loss_fn, state, sample, KEY, num_inner_steps=1, num_tasks=2)
    assert np.isnan(result.query_loss.mean[1])


def test_a_support_loss_that_is_not_finite_is_found():
    """It is only reported: no gradient depends on what makes it infinite."""

    def loss_fn(params, batch):
        return jnp.mean((params["w"] - batch) ** 2) + jax.lax.stop_gradient(jnp.where(batch[0] > 0, jnp.inf, 0.0))

    def sample(key):
        return jaxmaml.Task(jnp.ones(2) + jax.random.uniform(key, (2,)), -jnp.ones(2))

    learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    with pytest.raises(jaxmaml.NonFiniteError, match=r"support losses \[inf\]"):
        jaxmaml.fit(learner, learner.init({"w": jnp.ones(())}), sample, KEY, num_steps=3, num_tasks=2, progress=False)


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
    monkeypatch.setattr("jaxmaml.training.progress._SECONDS_BETWEEN_LINES", -1.0)
    fit(learner, learner.init(problems.mlp_params()), 2, steps_per_dispatch=1, progress=True)
    output = capsys.readouterr().out
    assert "outer step 1/2" in output
    assert "query loss" in output
    fit(learner, learner.init(problems.mlp_params()), 2, steps_per_dispatch=1)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_progress_copes_with_another_live_display(learner, capsys, monkeypatch):
    """Rich before 14.1 has one at a time, in whatever thread."""

    def refuse(console, live):
        raise rich.errors.LiveError("Only one live display may be active at once")

    monkeypatch.setattr(rich.console.Console, "set_live", refuse)
    monkeypatch.setattr("jaxmaml.training.progress._SECONDS_BETWEEN_LINES", -1.0)
    fit(learner, learner.init(problems.mlp_params()), 2, steps_per_dispatch=1, progress=True)
    assert "outer step 1/2" in capsys.readouterr().out
    assert list(track([1, 2], "decoding", 2)) == [1, 2]
