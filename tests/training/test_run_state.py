"""Runs of training: what ends them loses nothing, what is damaged is passed over, what differs is told apart."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

SAMPLE = jaxmaml.tasks.sinusoid(5, 5)
KEY = jax.random.key(7)


def maml(inner=0.05, outer=None, loss_fn=problems.mlp_loss):
    return jaxmaml.maml(loss_fn, optax.sgd(inner), outer or optax.sgd(0.01), num_inner_steps=1)


LEARNER = maml()


def fit(num_steps, learner=LEARNER, sample=SAMPLE, params=None, **options):
    state = learner.init(problems.mlp_params() if params is None else params)
    options = {"num_tasks": 3, "steps_per_dispatch": 2, "progress": False} | options
    return jaxmaml.fit(learner, state, sample, KEY, num_steps=num_steps, **options)


def validation(loss_fn=problems.mlp_loss, **options):
    options = {"num_inner_steps": 1, "num_tasks": 4, "every": 2} | options
    return jaxmaml.Validation(loss_fn, SAMPLE, jax.random.key(1), **options)


@pytest.mark.slow
def test_keys_in_the_state_are_saved_and_read(tmp_path):
    noisy = maml(outer=optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.01)))
    saved = jaxmaml.Checkpoints(tmp_path, every=2)
    fit(2, noisy, checkpoints=saved)
    resumed, _ = fit(4, noisy, checkpoints=saved)
    chex.assert_trees_all_equal(resumed, fit(4, noisy)[0])
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path, resumed), resumed)


@pytest.mark.slow
def test_a_run_that_stops_early_is_saved(tmp_path):
    worse = maml(outer=optax.sgd(-0.05))
    state, history = fit(
        100, worse, validation=validation(patience=2), checkpoints=jaxmaml.Checkpoints(tmp_path, every=50)
    )
    assert (int(state.step), len(history.query_loss)) == (2, 6)
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path, state), state)
    assert int(jaxmaml.restore(tmp_path, state, best=False).step) == 6


@pytest.mark.slow
def test_validations_without_a_finite_score_choose_nothing(tmp_path):
    never = validation(lambda params, batch: problems.mlp_loss(params, batch) * jnp.nan)
    with pytest.warns(UserWarning, match="validation at outer step 2 has a score of nan"):
        state, _ = fit(4, validation=never, checkpoints=jaxmaml.Checkpoints(tmp_path, every=2))
    chex.assert_trees_all_equal(state, fit(4)[0])
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path, state), state)


OTHERS = {
    "an array in the optimizer": ({"learner": maml(inner=jnp.float32(0.06))}, "made by another program"),
    "an array in the loss": (
        {"learner": maml(loss_fn=lambda p, b: problems.mlp_loss(p, b) + jnp.mean(jnp.array([1.0, 3.0])))},
        "made by another program",
    ),
    "sampler": ({"sample": jaxmaml.tasks.sinusoid(5, 5, noise_std=0.1)}, "by another sampler, or from other data"),
    "start": ({"params": jax.tree.map(jnp.ones_like, problems.mlp_params())}, "began at another state"),
    "validation": (
        {"validation": validation(lambda p, b: 2 * problems.mlp_loss(p, b))},
        "validated in another way",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_what_differs_is_told_apart(tmp_path, other):
    saved = jaxmaml.Checkpoints(tmp_path, every=2)
    ours = maml(loss_fn=lambda p, b: problems.mlp_loss(p, b) + jnp.mean(jnp.array([1.0, 2.0])))
    ours = ours if "loss" in other else maml(inner=jnp.float32(0.05))
    same = {"validation": validation(), "learner": ours, "checkpoints": saved}
    fit(2, **same)
    changes, message = OTHERS[other]
    with pytest.raises(ValueError, match=message):
        fit(4, **{**same, **changes})
    assert int(fit(4, **{**same, "validation": None})[0].step) == 4


@pytest.fixture
def hears_interrupts():
    """As in a program: where tests run in parallel, Python may have been told not to."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_loses_nothing(tmp_path, capsys, hears_interrupts):
    saved = jaxmaml.Checkpoints(tmp_path, every=1000)
    interrupt = lambda state, history: state.step == 4 and signal.raise_signal(signal.SIGINT)  # noqa: E731
    with pytest.raises(jaxmaml.Interrupted, match="after outer step 4") as caught:
        fit(100, checkpoints=saved, on_dispatch=interrupt)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.history.query_loss.shape == (4,)
    chex.assert_trees_all_equal(caught.value.state, fit(4)[0])
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path, caught.value.state), caught.value.state)
    assert "interrupt again to stop at once" in capsys.readouterr().err
    chex.assert_trees_all_equal(fit(6, checkpoints=saved)[0], fit(6)[0])

    def twice(state, history):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(100, on_dispatch=twice)
    assert not isinstance(caught.value, jaxmaml.Interrupted)


def test_an_error_loses_nothing(tmp_path):
    def stumble(state, history):
        if state.step == 4:
            raise RuntimeError("a full disk, say")

    saved = jaxmaml.Checkpoints(tmp_path / "error", every=1000)
    with pytest.raises(RuntimeError, match="a full disk"):
        fit(100, checkpoints=saved, on_dispatch=stumble)
    assert int(jaxmaml.restore(saved.directory, LEARNER.init(problems.mlp_params())).step) == 4
    diverging, saved = maml(outer=optax.sgd(1e3)), jaxmaml.Checkpoints(tmp_path / "nan", every=1000)
    with pytest.raises(jaxmaml.NonFiniteError) as caught:
        fit(1000, diverging, checkpoints=saved)
    chex.assert_trees_all_equal(jaxmaml.restore(saved.directory, caught.value.state), caught.value.state)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    saved = jaxmaml.Checkpoints(tmp_path, every=2, keep=3)
    fit(4, checkpoints=saved)
    shutil.rmtree(tmp_path / "4" / "run")
    start = LEARNER.init(problems.mlp_params())
    with pytest.warns(UserWarning, match="checkpoint of step 4 in .* cannot be read, and the one before it"):
        assert int(jaxmaml.restore(tmp_path, start).step) == 2
    with pytest.warns(UserWarning, match="cannot be read"):
        resumed, rest = fit(6, checkpoints=saved)
    chex.assert_trees_all_equal(resumed, fit(6)[0])
    assert rest.query_loss.shape == (4,)
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path, start), resumed)
    shutil.rmtree(tmp_path / "6" / "run")
    shutil.rmtree(tmp_path / "4")
    with pytest.warns(UserWarning, match="cannot be read"):
        fit(6, checkpoints=saved._replace(every=3), steps_per_dispatch=1)
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path, start), resumed)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"2", "3", "6"}
    for step in tmp_path.iterdir():
        for file in step.rglob("metadata"):
            file.write_text("{")
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match=r"No checkpoint in .* can be"),
    ):
        fit(8, checkpoints=saved)


MALFORMED = {
    "no steps": (validation(num_inner_steps=0), ValueError, "`num_inner_steps` must be >= 1"),
    "no key": (validation()._replace(key=None), TypeError, "`key` must be a single PRNG key"),
    "no loss": (validation(None), TypeError, "`loss_fn` must be callable"),
    "no tasks": (validation()._replace(tasks=5), TypeError, "`tasks` must be a jaxmaml.Task or a sampler"),
    "loss per example": (validation(lambda params, batch: batch[0]), ValueError, "scalar loss"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_validation_is_found_before_training(case):
    settings, error, message = MALFORMED[case]
    taken = []
    with pytest.raises(error, match=f"`validation` cannot be evaluated: .*{message}"):
        fit(8, validation=settings._replace(every=4), on_dispatch=lambda *_: taken.append(1))
    assert not taken


def test_metrics_of_another_run_stay(tmp_path):
    log, seen = tmp_path / "metrics.jsonl", []
    for _ in range(2):
        fit(4, metrics=[jaxmaml.metrics.jsonl(log), lambda step, values: seen.append(values["query_loss"])])
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 2, 4]
    assert len(seen) == 4
    jaxmaml.metrics.jsonl(log)(6, {"valid_loss": float("nan")})
    assert json.loads(log.read_text().splitlines()[-1]) == {"step": 6, "valid_loss": None}
    log.write_text("notes of mine\n")
    saved = jaxmaml.Checkpoints(tmp_path / "run", every=2)
    fit(2, checkpoints=saved)
    with pytest.raises(ValueError, match=r"metrics\.jsonl has lines that jaxmaml\.metrics\.jsonl did not write"):
        fit(4, checkpoints=saved, metrics=jaxmaml.metrics.jsonl(log))
    assert log.read_text() == "notes of mine\n"


@pytest.mark.slow
def test_metrics_of_a_run_killed_before_its_first_checkpoint_are_written_once(tmp_path):
    log = tmp_path / "metrics.jsonl"

    def killed_after(number):
        program = f"""
            import os, pathlib, sys
            sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
            from tests.training import test_run_state
            stop = lambda state, history: int(state.step) == {number} and os._exit(9)
            import jaxmaml
            test_run_state.fit(6, checkpoints=jaxmaml.Checkpoints({str(tmp_path / "run")!r}, every=100),
                metrics=jaxmaml.metrics.jsonl({str(log)!r}), on_dispatch=stop)
        """
        return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False).returncode

    assert killed_after(4) == 9
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4]
    assert killed_after(-1) == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 6]


@pytest.mark.filterwarnings("error")
def test_a_sampler_may_pass_its_key_on():
    """To the loss, say, for dropout."""

    def sample(key):
        x = jnp.ones((2, 1))
        return jaxmaml.Task((x, x, key), (x, x, key))

    def loss_fn(params, batch):
        x, y, key = batch
        return problems.mlp_loss(params, (x + jax.random.normal(key, x.shape), y))

    fit(2, jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1), sample=sample)


def test_a_sampler_that_ignores_its_key_is_warned_of():
    def sample(key):
        return jaxmaml.Task((jnp.ones((2, 1)), jnp.ones((2, 1))), (jnp.ones((2, 1)), jnp.ones((2, 1))))

    with pytest.warns(UserWarning, match="`sample_task` does not use its key"):
        fit(2, sample=sample)
    with pytest.warns(UserWarning, match="`tasks` does not use its key"):
        result = jaxmaml.evaluate(
            LEARNER, problems.mlp_loss, LEARNER.init(problems.mlp_params()), sample, KEY, num_inner_steps=1, num_tasks=1
        )
    assert np.isnan(result.query_loss.ci95).all()
    assert np.isfinite(result.query_loss.mean).all()


def test_serial_reptile_counts_outer_steps():
    learner = jaxmaml.reptile(
        problems.mlp_loss,
        optax.sgd(0.05),
        optax.sgd(0.1),
        num_inner_steps=2,
        serial=True,
        supports=jaxmaml.supports.minibatches(2),
    )
    whole, history = fit(6, learner)
    assert (int(whole.step), len(history.query_loss)) == (6, 6)
    chex.assert_trees_all_close(fit(6, learner, steps_per_dispatch=5)[0], whole, rtol=1e-6)
    half, _ = fit(3, learner)
    both, _ = jaxmaml.fit(learner, half, SAMPLE, KEY, num_steps=3, num_tasks=3, steps_per_dispatch=2, progress=False)
    chex.assert_trees_all_equal(both, whole)
