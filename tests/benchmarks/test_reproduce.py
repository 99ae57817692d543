"""Reproduction made small: from recipe to result and page; what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import jaxmaml
from benchmarks import report, reproduce, step_counts
from benchmarks.papers import data
from benchmarks.papers.recipes import RECIPES
from tests import problems

SMALL = {
    "num_ways": 3,
    "num_filters": 4,
    "num_tasks": 2,
    "outer_steps": 4,
    "valid_every": 2,
    "valid_tasks": 2,
    "test_tasks": 3,
}


@pytest.fixture(autouse=True)
def small(monkeypatch, quick_compiles):
    """Few characters, and a small model."""
    small = {"num_classes": (8, 6, 6), "images_per_class": 6}
    load = jaxmaml.tasks.strokes.load
    monkeypatch.setattr(jaxmaml.tasks.strokes, "load", lambda **options: load(**small))
    for form in ("omniglot", "mini_imagenet"):
        monkeypatch.setattr(jaxmaml.nn.Conv4, form, problems.QuickClassifier)


def arguments(folder, name="maml-omniglot-5w1s", **fields):
    words = ["--recipe", name, "--output-dir", str(folder)]
    for field, value in (SMALL | fields).items():
        words += [f"--{field.replace('_', '-')}", str(value)]
    return words


@pytest.mark.slow
def test_a_run_in_two_halves_is_one(tmp_path, capsys):
    reproduce.main([*arguments(tmp_path / "whole"), "--no-watch-test"])
    name = "reproduce_maml-omniglot-5w1s.json"
    whole = json.loads((tmp_path / "whole" / name).read_text())
    assert whole["recipe"]["num_ways"] == 3
    assert whole["normalisation"] == "transductive"
    assert len(whole["curve"]["mean"]) == 21
    assert [record["step"] for record in whole["history"]] == [2, 4]
    assert len(whole["episodes"]["sha256"]) == 64
    reproduce.main([*arguments(tmp_path / "halves"), "--budget", "0", "--no-watch-test"])
    half = json.loads((tmp_path / "halves" / name).read_text())
    assert half["outer_steps"] == 2
    with pytest.raises(SystemExit, match="exists: go on with --resume"):
        reproduce.main(arguments(tmp_path / "halves"))
    reproduce.main([*arguments(tmp_path / "halves"), "--resume"])
    both = json.loads((tmp_path / "halves" / name).read_text())
    same = ("outer_steps", "best_step", "accuracy", "curve", "episodes")
    assert {field: both[field] for field in same} == {field: whole[field] for field in same}
    assert "in the paper: 98.7 ± 0.4" in capsys.readouterr().out
    lines = (tmp_path / "halves" / "maml-omniglot-5w1s" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 2, 4, 4]
    counts = step_counts.Config(
        run=tmp_path / "whole" / "maml-omniglot-5w1s", output_dir=tmp_path, outer_steps=1, num_tasks=2, num_steps=2
    )
    (rows,) = step_counts.main(counts)["settings"].values()
    assert set(rows) == {"MAML", "joint training", "random initialisation"}
    assert (tmp_path / "step_counts_maml-omniglot-5w1s.png").exists()
    with pytest.raises(SystemExit, match="was evaluated with num_ways = 3"):
        report.main(report.Config(results_dir=tmp_path / "whole", output=tmp_path / "REPORT.md"))


@pytest.mark.slow
def test_a_pretrained_run_starts_from_a_classifier(tmp_path, monkeypatch):
    name = "pretrained-maml-omniglot-5w1s"
    words = [*arguments(tmp_path, name, pretrain_steps=2, outer_steps=2), "--no-watch-test"]
    reproduce.main(words)
    result = json.loads((tmp_path / f"reproduce_{name}.json").read_text())
    assert [(record["step"], record.get("pretrain_steps")) for record in result["history"]] == [(0, 2), (2, None)]
    assert result["train_seconds"] > result["history"][0]["seconds"] > 0
    seen = []
    original = reproduce.pretrained
    monkeypatch.setattr(reproduce, "pretrained", lambda *rest: seen.append(original(*rest)) or seen[-1])
    reproduce.main([*words, "--resume"])
    again = json.loads((tmp_path / f"reproduce_{name}.json").read_text())
    assert {**again, "command": ""} == {**result, "command": ""}
    recipe = dataclasses.replace(RECIPES[name], num_ways=3, num_filters=4)
    ((params, _),) = seen
    random, state = recipe.init().params["params"], recipe.init(params).params["params"]
    assert not np.any(state["Dense_0"]["kernel"])
    assert state["Dense_0"]["kernel"].shape == random["Dense_0"]["kernel"].shape
    assert np.any(state["body"]["kernel"] != random["body"]["kernel"])


def test_list_and_dry_run(tmp_path, capsys):
    reproduce.main(["--list"])
    reproduce.main([*arguments(tmp_path, "maml-plus-plus-mini-imagenet-5w1s", num_queries=1), "--dry-run"])
    printed = capsys.readouterr().out
    assert "maml-omniglot-20w5s" in printed
    assert "query_loss" in printed
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="No recipe 'mamml'"):
        reproduce.main(["--recipe", "mamml"])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_makes_its_learner(name):
    recipe = RECIPES[name]
    assert isinstance(recipe.learner(), jaxmaml.MetaLearner)
    assert recipe.paper.startswith("https://arxiv.org/abs/")
    assert recipe.test_tasks >= 600
    assert (recipe.num_ways, recipe.num_shots) == tuple(
        int(number) for number in name.rsplit("-", 1)[1].removesuffix("s").split("w")
    )


def test_the_page_is_of_matching_results_only(tmp_path):
    name = "maml-omniglot-5w1s"
    recipe = RECIPES[name]
    result = {
        "name": name,
        "protocol": reproduce.PROTOCOL,
        "version": jaxmaml.__version__,
        "recipe": dataclasses.asdict(recipe),
        "data": "real",
        "accuracy": 98.5,
        "ci95": 0.3,
        "outer_steps": 60_000,
        "train_seconds": 900.0,
        "seconds_to_paper": None,
        "normalisation": "transductive",
        "environment": {"platform": "cpu", "device": "cpu", "cpu_cores": 2},
        "command": "python -m benchmarks.reproduce",
        "history": [{"seconds": 60.0, "test_accuracy": 90.0}],
        "curve": {"mean": [20.0] * 21, "ci95": [1.0] * 21},
    }
    config = report.Config(results_dir=tmp_path, output=tmp_path / "REPORT.md")
    path = tmp_path / f"reproduce_{name}.json"

    def write(**changes):
        path.write_text(json.dumps({**result, **changes}))

    with pytest.raises(SystemExit, match="No reproduce"):
        report.main(config)
    write()
    report.main(config)
    assert "98.7 ± 0.4 | 98.50 ± 0.30 | 60000 of 60000 | 15.0" in config.output.read_text()
    for changes, message in (
        ({"protocol": 0}, "is of protocol 0"),
        ({"version": "9.9"}, "version 9.9"),
        ({"data": "procedural stand-in"}, "procedural stand-in, which is not the row"),
        ({"recipe": {**result["recipe"], "num_test_queries": 15}}, "num_test_queries = 15"),
        ({"recipe": {**result["recipe"], "pretrain_steps": 10}}, "pretrain_steps = 10"),
    ):
        write(**changes)
        with pytest.raises(SystemExit, match=message):
            report.main(config)


def test_stand_ins_have_the_form_of_the_data():
    splits = data.load(RECIPES["maml-mini-imagenet-5w1s"], None)
    assert splits.train.images.shape[2:] == (84, 84, 3)
    assert np.unique(splits.train.images).size > 2
