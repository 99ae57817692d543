"""The figure of the comparison for streams."""

import pathlib
from typing import Any

import matplotlib
import numpy as np


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """The loss against the position in the stream, with confidence bands."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name, row in result["rows"].items():
        mean, ci95 = np.array(row["mean"], float), np.array(row["ci95"], float)
        chunks = np.arange(len(mean))
        label = f"{name} ({row['step_size']:g})" if row["step_size"] else name
        (line,) = panel.plot(chunks, mean, marker="o", markersize=3.5, label=label)
        low = np.maximum(mean - ci95, 0.5 * mean)  # A logarithm has no room below zero.
        panel.fill_between(chunks, low, mean + ci95, alpha=0.15, color=line.get_color(), linewidth=0)
    panel.set(yscale="log", xlabel="chunk of the stream, before the step on it", ylabel="MSE of the next value")
    panel.legend(title="start (step size)", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panel.set_title(f"Drifting signals, {result['config']['num_tasks']} new streams, 95% CI")
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")
