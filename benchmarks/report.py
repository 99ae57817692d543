"""One page of the papers' numbers and ours, from the result files of `benchmarks.reproduce`.

python -m benchmarks.report
"""

import dataclasses
import json
import pathlib
from typing import Any

import matplotlib
import numpy as np
import tyro

import jaxmaml
from benchmarks.common import reporting
from benchmarks.papers.recipes import PROTOCOL, RECIPES

#: The fields that define a row of a paper's table; a result that differs in one of them does not belong to the row.
EVALUATION = (
    "algorithm",
    "dataset",
    "num_ways",
    "num_shots",
    "num_test_queries",
    "num_test_inner_steps",
    "num_filters",
    "normalisation",
    "test_tasks",
)

PICTURE = "reproduce.png"


@dataclasses.dataclass(frozen=True)
class Config:
    """Where results are read, and where the page goes."""

    results_dir: pathlib.Path = pathlib.Path("benchmarks/results/papers")
    output: pathlib.Path = pathlib.Path("benchmarks/REPORT.md")


def main(config: Config) -> None:
    results = read(config.results_dir)
    figure(results, config.results_dir / PICTURE)
    config.output.write_text(page(results))
    print(f"wrote {config.output}")


def read(results_dir: pathlib.Path) -> list[dict[str, Any]]:
    results = [json.loads(path.read_text()) for path in sorted(results_dir.glob("reproduce_*.json"))]
    if not results:
        raise SystemExit(f"No reproduce_*.json in {results_dir}; run benchmarks.reproduce first.")
    for result in results:
        refuse_mismatch(result)
    return results


def refuse_mismatch(result: dict[str, Any]) -> None:
    """Raise if a result is not of the row that its name says, or was made by another version."""
    name = result["name"]
    if result["protocol"] != PROTOCOL or result["version"].split(".")[:2] != jaxmaml.__version__.split(".")[:2]:
        raise SystemExit(
            f"{name} is of protocol {result['protocol']} and version {result['version']}, and this is protocol "
            f"{PROTOCOL} of version {jaxmaml.__version__}: run it again."
        )
    row = dataclasses.asdict(RECIPES[name])
    other = [field for field in EVALUATION if result["recipe"][field] != row[field]]
    # The length of pretraining may differ, but not whether there is any.
    if (result["recipe"].get("pretrain_steps", 0) > 0) != (row["pretrain_steps"] > 0):
        other.append("pretrain_steps")
    if other or result["data"] != "real":
        what = ", ".join(f"{field} = {result['recipe'][field]!r}" for field in other) or "a procedural stand-in"
        raise SystemExit(f"{name} was evaluated with {what}, which is not the row of the paper.")


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        "# The papers' numbers, reproduced",
        "",
        "Made by `python -m benchmarks.report` from the result files beside it. Accuracy in per cent on meta-test "
        "tasks with its 95% confidence interval, one model each, chosen on meta-validation tasks.",
        "",
        table(results),
        "",
        f"![Accuracy during training and against inner steps](results/papers/{PICTURE})",
        "",
        "Commands; their arguments are what differs from the paper's recipe:",
        "",
        *(f"    {result['command']}" for result in results),
    ]
    return "\n".join([*lines, ""])


def table(results: list[dict[str, Any]]) -> str:
    """One row for each result, in Markdown."""
    lines = [
        "| recipe | paper | ours | outer steps | minutes | to the paper's number | queries a class | normalisation "
        "| device |",
        "| --- | --: | --: | --: | --: | --: | --: | --- | --- |",
    ]
    for result in results:
        recipe, reached, where = result["recipe"], result["seconds_to_paper"], result["environment"]
        cells = (
            f"`{result['name']}`",
            reporting.percent(recipe["paper_accuracy"], recipe["paper_ci95"]),
            f"{result['accuracy']:.2f} ± {result['ci95']:.2f}",
            f"{result['outer_steps']} of {RECIPES[result['name']].outer_steps}",
            f"{result['train_seconds'] / 60:.1f}",
            "-" if reached is None else f"{reached / 60:.1f} min",
            str(recipe["num_test_queries"]),
            result["normalisation"],
            where["device"] if where["platform"] == "gpu" else _cores(where),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cores(environment: dict[str, Any]) -> str:
    number = environment["cpu_cores"]
    return f"{environment['device']}, {number} core{'s' * (number > 1)}"


def figure(results: list[dict[str, Any]], path: pathlib.Path) -> None:
    """A row of panels for each data set: accuracy during training, and of the chosen state against inner steps."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    datasets = sorted({result["recipe"]["dataset"] for result in results}, reverse=True)
    size = (11, 3.9 * len(datasets))
    figure, lines = plt.subplots(len(datasets), 2, figsize=size, squeeze=False, layout="constrained")
    for dataset, (during, steps) in zip(datasets, lines, strict=True):
        for result in results:
            if result["recipe"]["dataset"] != dataset:
                continue
            watched = [(r["seconds"], r["test_accuracy"]) for r in result["history"] if "test_accuracy" in r]
            times, accuracies = np.array(watched or [(result["train_seconds"], result["accuracy"])]).T
            (line,) = during.plot(times / 60, accuracies, marker="" if watched else "o", label=result["name"])
            color, paper = line.get_color(), result["recipe"]["paper_accuracy"]
            if paper is not None:
                during.axhline(paper, color=color, linewidth=0.8, linestyle="--")
            mean, ci95 = np.array(result["curve"]["mean"]), np.array(result["curve"]["ci95"])
            steps.plot(mean, marker=".", color=color, label=result["name"])
            steps.fill_between(np.arange(len(mean)), mean - ci95, mean + ci95, alpha=0.2, color=color, linewidth=0)
        during.set(
            xlabel="minutes of training", ylabel="meta-test accuracy (%)", title="best state so far; dashed: the paper"
        )
        steps.set(xlabel="inner steps on a new task", title="the chosen state")
        steps.xaxis.set_major_locator(MaxNLocator(integer=True))
        during.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Config))
