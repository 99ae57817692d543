"""The step-count benchmark's figure."""

import pathlib
from typing import Any

import matplotlib
import numpy as np

from benchmarks.adaptation.problem import Problem
from benchmarks.common import reporting


def draw(problem: Problem, settings: dict[str, Any], path: pathlib.Path) -> None:
    """One panel a setting: the metric against gradient steps, with confidence bands."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    many = max(len(rows) for rows in settings.values()) > 8
    size = (8.5, 5.2) if many else (4.4 * len(settings), 5.8)
    figure, panels = plt.subplots(1, len(settings), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel, (setting, rows) in zip(panels[0], settings.items(), strict=True):
        panel.set_prop_cycle(color=plt.get_cmap("tab20" if many else "tab10").colors)  # pyright: ignore
        for name, row in rows.items():
            mean, ci95 = np.array(row["mean"], float), np.array(row["ci95"], float)
            steps = np.arange(len(mean))
            (line,) = panel.plot(steps, mean, marker="o", markersize=3.5, label=reporting.label(name, row))
            lower = np.maximum(mean - ci95, 0.5 * mean)  # A logarithm has no room below zero.
            panel.fill_between(steps, lower, mean + ci95, alpha=0.15, color=line.get_color(), linewidth=0)
        for target in problem.targets:
            panel.axhline(target, color="0.75", linewidth=0.8, linestyle="--", zorder=0)
        panel.set(title=setting, xlabel="gradient steps on the new task")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if many:
            panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        else:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
            panel.legend(title="start (step size)", frameon=False, fontsize=9, **place)
    if problem.metric == "accuracy":
        panels[0][0].set_ylim(0, 1.02)
        panels[0][0].yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        values = [value for rows in settings.values() for row in rows.values() for value in row["mean"] if value]
        finite = [value for value in values if value < 8]  # What diverges may leave the picture.
        panels[0][0].set_ylim(0, 1.1 * max(finite, default=8.0))
        if many:
            panels[0][0].set(yscale="log", ylim=(0.7 * min(finite, default=1.0), 1.5 * max(finite, default=8.0)))
    panels[0][0].set_ylabel(problem.metric_name)
    figure.suptitle(problem.title)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")
