"""The main job, made small, and its counting."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml
from benchmarks import step_counts
from benchmarks.adaptation import families, navigation
from benchmarks.adaptation.problem import FineTuning
from benchmarks.common import pretraining, reporting
from tests import family, problems


@pytest.fixture
def small(monkeypatch, quick_compiles):
    """Few characters, and a small model."""
    strokes = jaxmaml.tasks.strokes
    characters = functools.partial(strokes.load, num_classes=(8, 6, 6), images_per_class=17)
    monkeypatch.setattr(strokes, "load", characters)
    monkeypatch.setattr(jaxmaml.nn.Conv4, "omniglot", problems.QuickClassifier)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sinusoid", "omniglot"])
def test_a_small_run(task, tmp_path, capsys, monkeypatch, small):
    monkeypatch.setattr(pretraining, "BATCH", 8)
    config = step_counts.Config(task=task, output_dir=tmp_path, outer_steps=3, num_tasks=4, num_steps=2)
    result = step_counts.main(config)
    assert json.loads((tmp_path / f"step_counts_{task}.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / f"step_counts_{task}.png").read_bytes().startswith(b"\x89PNG")
    assert result["environment"]["jax"] == jax.__version__
    assert result["command"].startswith("python -m benchmarks.step_counts")
    assert result["config"]["seed"] == 0
    names = {"MAML", "MAML, first order", "joint training", "random initialisation"}
    for rows in result["settings"].values():
        assert set(rows) == (names | {"oracle"} if task == "sinusoid" else names)
        for row in rows.values():
            assert len(row["mean"]) == len(row["ci95"]) == 3
            assert np.isfinite(row["mean"]).all()
    printed = capsys.readouterr().out
    assert "k = 2" in printed
    assert "random initialisation" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("task", "names"), [("sinusoid", ("anil", "from_scratch")), ("omniglot", ("maml_plus_plus",))])
def test_a_small_run_of_algorithms(task, names, tmp_path, capsys, monkeypatch, small):
    family = families.Family
    monkeypatch.setattr(
        families, "Family", lambda *args, **options: family(*args, **{**options, "steps_per_dispatch": 10})
    )
    options = {"output_dir": tmp_path, "outer_steps": 2, "num_tasks": 4, "num_steps": 2}
    result = step_counts.main(step_counts.Config(task=task, algorithms=names, **options))
    saved = json.loads((tmp_path / f"step_counts_{task}_algorithms.json").read_text())
    assert saved == json.loads(json.dumps(result))
    assert (tmp_path / f"step_counts_{task}_algorithms.png").read_bytes().startswith(b"\x89PNG")
    (rows,) = result["settings"].values()
    assert set(rows) == set(names)
    for name, row in rows.items():
        assert row["normalisation"]
        assert len(row["mean"]) == 3
        assert ("ms_per_outer_step" in row) == (name != "from_scratch")
    assert "ms an outer step" in capsys.readouterr().out
    if task == "sinusoid":  # One is measured again, and the others stay.
        again = step_counts.main(step_counts.Config(task=task, algorithms=names[1:], **options))
        (kept,) = again["settings"].values()
        assert list(kept) == list(names)
        assert kept["anil"] == rows["anil"]
    with pytest.raises(SystemExit, match="No algorithm 'mamml' for this task; there are maml"):
        step_counts.main(step_counts.Config(task=task, algorithms=("mamml",), **options))


@pytest.mark.slow
def test_a_small_run_of_navigation(tmp_path, capsys, monkeypatch, quick_compiles):
    recipe = navigation.Recipe(
        width=4, outer_steps=2, num_tasks=2, num_trajectories=3, test_trajectories=2, horizon=5, rates=(0.01,)
    )
    monkeypatch.setattr(navigation, "RECIPE", recipe)
    result = step_counts.main(step_counts.Config(task="navigation", output_dir=tmp_path, num_tasks=3))
    assert json.loads((tmp_path / "step_counts_navigation.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "step_counts_navigation.png").read_bytes().startswith(b"\x89PNG")
    (rows,) = result["settings"].values()
    assert set(rows) == {"MAML", "pretraining", "random policy", "oracle"}
    assert all(len(row["mean"]) == len(row["ci95"]) == 4 for row in rows.values())
    assert all(np.isfinite(row["mean"]).all() for row in rows.values())
    assert "2D navigation: return after k steps, 3 goals" in capsys.readouterr().out


def test_the_oracle_walks_straight_to_its_goal():
    """Three steps of at most 0.1 in each coordinate, and no cost once it is there."""
    goals = np.array([[0.25, 0.0], [-0.1, 0.05]])
    found = navigation.straight_line(goals, 10)
    np.testing.assert_allclose(found, [-(0.15 + 0.05), 0.0], atol=1e-12)


def test_every_factory_has_its_row():
    rows = set(families.sinusoid(jax.random.key(0)).algorithms) | {"proto_maml"}
    assert rows >= set(family.FACTORIES)


def test_fine_tuning_is_gradient_descent_at_the_given_step_size():
    def sample(key):
        centre = jax.random.normal(key, (2,))
        return jaxmaml.Task(centre, centre)

    fine_tuning = FineTuning(problems.quadratic_loss, num_inner_steps=3, chunk_size=2)
    for rate, later in [(0.0, 1.0), (0.25, 1.0), (0.25, 0.5)]:
        mean = fine_tuning({"theta": jnp.zeros(2)}, rate, sample, jax.random.key(0), 5, later).query_loss.mean
        left = np.cumprod([1, 1 - rate, 1 - later * rate, 1 - later * rate])
        np.testing.assert_allclose(mean / mean[0], left**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("metric", "target", "expected"), [("loss", 0.5, 2), ("accuracy", 0.9, 0), ("loss", 0.1, None)]
)
def test_steps_to(metric, target, expected):
    problem = type("Problem", (), {"metric": metric})
    assert step_counts.steps_to(problem, jnp.array([0.9, 0.6, 0.5, 0.7]), target) == expected


def test_the_search_prefers_what_is_better_and_never_what_diverges():
    loss, accuracy = (type("Problem", (), {"metric": metric}) for metric in ("loss", "accuracy"))
    assert step_counts._score(loss, jnp.array([9.0, 1.0])) < step_counts._score(loss, jnp.array([0.0, 2.0]))
    assert step_counts._score(accuracy, jnp.array([0, 0.9])) < step_counts._score(accuracy, jnp.array([1, 0.2]))
    assert step_counts._score(loss, jnp.array([1.0, jnp.nan])) == np.inf


def test_a_readers_own_paths_stay_out_of_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--task", "omniglot", "--data-dir", "/home/me/data", "--seed", "1"])
    assert reporting.command_line("a.b") == "python -m a.b --task omniglot --data-dir DATA_DIR --seed 1"
