"""The comparison of starts for neural fields, made small, and its parts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from benchmarks import step_counts
from benchmarks.fields import comparison, starts
from benchmarks.fields.fine_tuning import FineTuning, Optimizer, candidates, steps_to
from tests import problems


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, monkeypatch, quick_compiles):
    monkeypatch.setattr(starts, "SIZE", 8)
    monkeypatch.setattr(starts, "model", lambda channels: jaxmaml.nn.Siren((8, 8, channels)))
    config = step_counts.Config(task="fields", output_dir=tmp_path, outer_steps=3, num_tasks=3, num_steps=12)
    result = step_counts.main(config)
    assert json.loads((tmp_path / "step_counts_fields.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "step_counts_fields.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["rows"]) == ["MAML", "Reptile", "mean start", "standard initialisation"]
    for row in result["rows"].values():
        assert len(row["mean"]) == len(row["ci95"]) == len(result["steps"]) == 13
        assert row["optimizer"] in row["candidates"]
    assert result["rows"]["MAML"]["steps_to_target"] <= 2
    assert result["rows"]["MAML"]["mean"][2] == pytest.approx(result["target_db"])
    assert "factor" in capsys.readouterr().out


def test_fields_take_no_algorithms():
    with pytest.raises(SystemExit, match="it takes neither --algorithms nor --run"):
        step_counts.main(step_counts.Config(task="fields", algorithms=("maml",)))


@pytest.mark.parametrize("optimizer", [Optimizer(0, 0.0, 0.1, 0.0), Optimizer(2, 0.1, 0.0, 0.05)])
def test_fine_tuning_is_gradient_descent_and_then_adam(optimizer):
    """Against optax in a loop: Adam's averages begin with its first step."""
    tasks = problems.mlp_tasks(num_tasks=2)
    params = problems.mlp_params()
    loss_fn = jaxmaml.reconstruction(problems.mlp)
    found = FineTuning(loss_fn, chunk_size=2).psnr(params, optimizer, tasks, 6)
    for number in range(2):
        support, query = jax.tree.map(lambda leaf, number=number: leaf[number], tasks)
        here, expected, adam = params, [], optax.adam(optimizer.adam_rate)
        adam_state = adam.init(params)
        for step in range(7):
            expected.append(-10 * np.log10(loss_fn(here, query)[0]))
            grads = jax.grad(lambda p, batch=support: loss_fn(p, batch)[0])(here)
            if step < optimizer.first or not optimizer.adam_rate:
                rate = optimizer.first_rate if step < optimizer.first else optimizer.sgd_rate
                here = jax.tree.map(lambda p, g, rate=rate: p - rate * g, here, grads)
            else:
                updates, adam_state = adam.update(grads, adam_state)
                here = optax.apply_updates(here, updates)
        np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-3)


def test_the_fastest_candidate_is_found(monkeypatch):
    """By the steps to the target; of those that never reach it, the highest of the second round."""
    fine_tuning = FineTuning(problems.mlp_loss, chunk_size=1)
    made = {0.01: 4.0, 0.1: 2.0}  # dB a step; all others stand still.

    def psnr(params, optimizer, tasks, num_steps):
        return np.arange(num_steps + 1)[None] * made.get(optimizer.sgd_rate, 0.0)

    monkeypatch.setattr(fine_tuning, "psnr", psnr)
    start = starts.Start("standard", None)
    best, found = fine_tuning.best(start, None, (3, 30), 7.0)
    assert best == Optimizer(0, 0.0, 0.01, 0.0)
    assert {row["steps"] for row in found.values()} == {3}
    assert found["SGD 0.01"]["steps_to_target"] == 2
    best, found = fine_tuning.best(start, None, (3, 30), 50.0)
    assert best == Optimizer(0, 0.0, 0.01, 0.0)
    assert sorted(row["steps"] for row in found.values())[-3:] == [30] * 3
    assert found["SGD 0.01"]["steps_to_target"] == 13


def test_candidates_begin_as_the_start_was_trained():
    first = (2, 0.5)
    trained = candidates(starts.Start("MAML", None, first))
    untrained = candidates(starts.Start("standard", None))
    assert [one for one in trained if not one.first] == untrained
    assert {(one.first, one.first_rate) for one in trained} == {(0, 0.0), first}
    assert any(one.adam_rate for one in untrained)
    assert str(trained[-1]).startswith("2 x SGD 0.5, then Adam")


def test_steps_to_and_the_factor():
    assert steps_to(np.array([1.0, 5.0, 4.0, 9.0]), 5.0) == 1
    assert steps_to(np.array([1.0, 5.0]), 6.0) is None
    rng = np.random.default_rng(1)
    offsets = rng.normal(size=(20, 1))
    maml = np.array([10.0, 20.0, 30.0]) + offsets
    other = np.arange(41.0) + offsets  # The same images are hard for both: no uncertainty.
    found = comparison.counted({"MAML": maml, "other": other}, "other")
    assert found["steps_to_target"] == 30
    assert found["factor"] == 15
    assert found["factor_interval"] == [15, 15]
    never = comparison.counted({"MAML": maml, "other": other[:, :20]}, "other")
    assert never["factor"] is None
    assert never["factor_interval"] == [None, None]


def test_the_table_says_what_is_never_reached():
    row = {"optimizer": "Adam 0.001", "mean": [1.0, None], "ci95": [0.1, None], "steps_to": {"30 dB": None}}
    rows = {"standard": row | {"steps_to_target": None, "factor": None, "factor_interval": [40.0, None]}}
    expected = "| standard | Adam 0.001 | 1.0 ± 0.1 | diverged | > 100 | > 100 | > 50 (40 to > 50) |"
    assert comparison.markdown({"steps": [0, 2, 100], "rows": rows}).splitlines()[-1] == expected


def test_the_steps_that_are_kept():
    steps = comparison.log_spaced(1000)
    assert steps[:21] == list(range(21))
    assert {100, 1000} <= set(steps)
    assert len(steps) < 90
    assert comparison.log_spaced(12) == list(range(13))


def test_images_of_all_classes_are_tasks(monkeypatch):
    classes = jaxmaml.tasks.ImageClasses(
        np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3), ("a", "b")
    )
    monkeypatch.setattr(jaxmaml.tasks.image_folders, "load", lambda *_, **__: jaxmaml.tasks.Splits(*[classes] * 3))
    train, valid, test = starts.samplers("folder")
    for sample in (train, valid, test):
        assert jax.tree.leaves(sample)[0].shape == (6, 4, 4, 3)
        assert sample(jax.random.key(0)).query.targets.shape == (16, 3)


def test_phantoms_need_no_folder():
    train, valid, test = starts.samplers(None)
    tasks = [part(key) for part, key in zip((train, valid, test), jax.random.split(jax.random.key(0), 3), strict=True)]
    assert all(task.query.targets.shape == (starts.SIZE**2, 1) for task in tasks)
    assert not jnp.allclose(tasks[0].query.targets, tasks[1].query.targets)
