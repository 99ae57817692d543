"""Training that survives: resumed runs are deterministic to the bit, wrong checkpoints are refused."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems
from tests.conftest import REPOSITORY

SAMPLE = jaxmaml.tasks.sinusoid(5, 5)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def learner():
    return jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)


def fit(learner, num_steps, state=None, key=KEY, **options):
    state = learner.init(problems.mlp_params()) if state is None else state
    options = {"num_tasks": 3, "steps_per_dispatch": 2, "progress": False} | options
    return jaxmaml.fit(learner, state, SAMPLE, key, num_steps=num_steps, **options)


def test_a_resumed_run_is_equal_to_the_bit(learner, tmp_path):
    whole, history = fit(learner, 8)
    saved = jaxmaml.Checkpoints(tmp_path / "run", every=2, keep=1)
    fit(learner, 4, checkpoints=saved)
    resumed, rest = fit(learner, 8, checkpoints=saved)
    chex.assert_trees_all_equal(resumed, whole)
    np.testing.assert_array_equal(rest.query_loss, history.query_loss[4:])
    again, nothing = fit(learner, 8, checkpoints=saved)
    chex.assert_trees_all_equal(again, whole)
    assert nothing.query_loss.shape == (0,)
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["8"]


def test_a_saved_state_is_restored(learner, tmp_path):
    start = learner.init(problems.mlp_params())
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        jaxmaml.restore(tmp_path / "nothing", start)
    assert not (tmp_path / "nothing").exists()
    last, _ = fit(learner, 4, checkpoints=jaxmaml.Checkpoints(tmp_path / "run", every=2))
    chex.assert_trees_all_equal(jaxmaml.restore(tmp_path / "run", start), last)
    with pytest.raises(ValueError, match="is of another model, algorithm or optimizer"):
        jaxmaml.restore(tmp_path / "run", learner.init({"other": jnp.ones(3)}))


def test_raw_keys_are_kept_too(learner, tmp_path):
    saved = jaxmaml.Checkpoints(tmp_path, every=2)
    raw = jax.random.PRNGKey(3)
    fit(learner, 2, key=raw, checkpoints=saved)
    resumed, _ = fit(learner, 4, key=raw, checkpoints=saved)
    chex.assert_trees_all_equal(resumed, fit(learner, 4, key=raw)[0])


OTHERS = {
    "model": (
        lambda: (jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1), (1, 4, 1)),
        r"of another model, algorithm or optimizer: it has float32\[",
    ),
    "optimizer": (
        lambda: (jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.sgd(1e-2), num_inner_steps=1), None),
        "of another model, algorithm or optimizer",
    ),
    "rule": (
        lambda: (jaxmaml.meta_sgd(problems.mlp_loss, 0.05, optax.adam(1e-2), num_inner_steps=1), None),
        "of another model, algorithm or optimizer",
    ),
    "algorithm": (
        lambda: (jaxmaml.fomaml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1), None),
        "made by another program.*; `algorithm` was maml, and is fomaml",
    ),
    "step size": (
        lambda: (jaxmaml.maml(problems.mlp_loss, optax.sgd(0.06), optax.adam(1e-2), num_inner_steps=1), None),
        "made by another program",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(learner, tmp_path, other):
    saved = jaxmaml.Checkpoints(tmp_path, every=2)
    fit(learner, 2, checkpoints=saved)
    make, message = OTHERS[other]
    different, widths = make()
    state = different.init(problems.mlp_params(widths=widths) if widths else problems.mlp_params())
    with pytest.raises(ValueError, match=message):
        fit(different, 4, state, checkpoints=saved)
    if other in ("algorithm", "step size"):
        state, _ = fit(different, 4, state, checkpoints=saved._replace(same_program=False))
        assert int(state.step) == 4


def test_a_run_goes_on_with_another_mesh_and_other_chunks(tmp_path):
    """With the same validation, and close to the run that changes nothing."""
    validation = jaxmaml.Validation(
        problems.mlp_loss, jaxmaml.tasks.sinusoid(5, 5), jax.random.key(1), num_inner_steps=1, num_tasks=4, every=2
    )
    states = []
    for name, later in (("same", {}), ("other", {"mesh": jaxmaml.task_mesh(), "chunk_size": 2})):
        saved = jaxmaml.Checkpoints(tmp_path / name, every=2)
        for num_steps, axes in ((2, {}), (4, later)):
            learner = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1, **axes)
            other = validation._replace(chunk_size=axes.get("chunk_size", 20))
            state, _ = fit(learner, num_steps, num_tasks=4, checkpoints=saved, validation=other)
        states.append(state)
        assert int(state.step) == 4
    chex.assert_trees_all_close(*states, rtol=1e-4)


def test_another_key_or_dtype_is_refused(learner, tmp_path):
    saved = jaxmaml.Checkpoints(tmp_path, every=2)
    fit(learner, 2, checkpoints=saved)
    with pytest.raises(ValueError, match="from another `key`"):
        fit(learner, 4, key=jax.random.key(8), checkpoints=saved)
    half = learner.init(problems.mlp_params(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"it has float32.* and this learner bfloat16"):
        fit(learner, 4, half, checkpoints=saved)


KILLED = """
    import jax, optax, jaxmaml, sys
    from tests import problems
    learner = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)
    jaxmaml.fit(
        learner, learner.init(problems.mlp_params()), jaxmaml.tasks.sinusoid(5, 5), jax.random.key(7),
        num_steps=100_000, num_tasks=3, steps_per_dispatch=2, progress=False,
        checkpoints=jaxmaml.Checkpoints(sys.argv[1] + "/run", every=20),
        metrics=jaxmaml.metrics.jsonl(sys.argv[1] + "/metrics.jsonl"),
    )
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(learner, tmp_path):
    """kill -9 while steps are taken and checkpoints written: the last whole one is there, and the bits go on."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], cwd=REPOSITORY)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 35:
        assert process.poll() is None, "training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = json.loads(metrics.read_text().splitlines()[-2])["step"]
    saved = jaxmaml.Checkpoints(tmp_path / "run", every=20, same_program=False)
    end = reached + 40
    resumed, rest = fit(learner, end, checkpoints=saved, metrics=jaxmaml.metrics.jsonl(metrics))
    chex.assert_trees_all_equal(resumed, fit(learner, end)[0])
    # What was lost: the steps since the last checkpoint, and that which was being written.
    assert end - len(rest.query_loss) > reached - 60
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(2, end + 1, 2))


def test_validation_keeps_the_best_and_stops(learner, tmp_path):
    """An outer step that diverges: the first validation stays the best, and patience ends the run."""
    worse = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.sgd(-0.05), num_inner_steps=1)
    validation = jaxmaml.Validation(
        problems.mlp_loss, SAMPLE, jax.random.key(1), num_inner_steps=1, num_tasks=8, every=2, patience=3
    )
    log = tmp_path / "metrics.jsonl"
    state, history = fit(worse, 100, validation=validation, metrics=jaxmaml.metrics.jsonl(log))
    assert int(state.step) == 2
    assert len(history.query_loss) == 8
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert len(losses) == 4
    assert losses == sorted(losses)
    assert {"query_loss", "grad_norm", "steps_per_second"} <= set(lines[0])
    better = validation._replace(patience=None)
    state, _ = fit(learner, 6, validation=better)
    scores = {
        step: -float(
            jaxmaml.evaluate(
                learner,
                problems.mlp_loss,
                fit(learner, step)[0],
                SAMPLE,
                jax.random.key(1),
                num_inner_steps=1,
                num_tasks=8,
            ).query_loss.mean[-1]
        )
        for step in (2, 4, 6)
    }
    assert int(state.step) == max(scores, key=lambda step: scores[step])


def test_best_state_and_patience_survive_a_stop(learner, tmp_path):
    worse = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.sgd(-0.05), num_inner_steps=1)
    options = {
        "validation": jaxmaml.Validation(
            problems.mlp_loss, SAMPLE, jax.random.key(1), num_inner_steps=1, num_tasks=8, every=2, patience=3
        ),
        "checkpoints": jaxmaml.Checkpoints(tmp_path, every=2),
    }
    fit(worse, 4, **options)
    state, history = fit(worse, 100, **options)
    assert int(state.step) == 2
    assert len(history.query_loss) == 4
    assert int(jaxmaml.restore(tmp_path, state).step) == 2
    assert int(jaxmaml.restore(tmp_path, state, best=False).step) == 8


def test_tensorboard_gets_scalars(learner, tmp_path):
    fit(learner, 4, metrics=[jaxmaml.metrics.tensorboard(tmp_path)])
    appears(b"query_loss", tmp_path)


def test_tensorboard_gets_each_value_within_seconds(tmp_path):
    """By default tensorboardX's thread writes what comes later than the first values two minutes later."""
    write = jaxmaml.metrics.tensorboard(tmp_path)
    for step, name in enumerate(("first", "second", "third")):
        write(step, {name: 0.5})
        appears(name.encode(), tmp_path)


def appears(text, folder):
    (events,) = folder.glob("events.*")
    deadline = time.monotonic() + 20
    while text not in events.read_bytes():  # A thread of tensorboardX writes it.
        assert time.monotonic() < deadline
        time.sleep(0.1)


BAD = {
    "no settings": ({"checkpoints": "folder"}, TypeError, "must be a jaxmaml.Checkpoints"),
    "no path": ({"checkpoints": jaxmaml.Checkpoints(3)}, TypeError, "`directory` must be a path"),
    "never": ({"checkpoints": jaxmaml.Checkpoints("x", every=0)}, ValueError, "`every` must be >= 1"),
    "no validation": ({"validation": 3}, TypeError, "must be a jaxmaml.Validation"),
    "no patience": (
        {"validation": jaxmaml.Validation(problems.mlp_loss, SAMPLE, KEY, num_inner_steps=1, patience=0)},
        ValueError,
        "`patience` must be >= 1",
    ),
    "no writer": ({"metrics": ["metrics.jsonl"]}, TypeError, "`metrics` must be callable"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(learner, case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        fit(learner, 2, **options)


def test_home_is_expanded(learner, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    state, _ = fit(learner, 2, checkpoints=jaxmaml.Checkpoints("~/run"), metrics=jaxmaml.metrics.jsonl("~/run.jsonl"))
    chex.assert_trees_all_equal(jaxmaml.restore("~/run", state), state)
    assert (tmp_path / "run").is_dir()
    assert (tmp_path / "run.jsonl").exists()
