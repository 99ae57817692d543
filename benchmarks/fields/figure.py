"""The figure of the comparison for neural fields: curves, and pictures of the reconstructions."""

import pathlib
from typing import Any

import matplotlib
import numpy as np


def draw(result: dict[str, Any], pictures: dict[str, dict[int, np.ndarray]], image: np.ndarray, path: pathlib.Path):
    """PSNR against steps on a logarithmic axis, beside one image as each start has it after some steps."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    steps = np.array(result["steps"])
    shown = list(next(iter(pictures.values())))
    figure = plt.figure(figsize=(13.5, 5.4), layout="constrained")
    left, right = np.ravel(np.array(figure.subfigures(1, 2, width_ratios=(1.0, 1.25))))
    panel = left.subplots()
    for name, row in result["rows"].items():
        mean, ci95 = np.array(row["mean"], float), np.array(row["ci95"], float)
        (line,) = panel.plot(steps, mean, marker="o", markersize=3, label=f"{name} ({row['optimizer']})")
        panel.fill_between(steps, mean - ci95, mean + ci95, alpha=0.15, color=line.get_color(), linewidth=0)
    panel.axhline(result["target_db"], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    panel.set_xscale("symlog", linthresh=1, linscale=0.4)
    ticks = [step for step in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step <= steps[-1]]
    panel.set_xticks(ticks, [str(step) for step in ticks])
    panel.set(xlabel="steps on the new image", ylabel="PSNR (dB)", xlim=(0, steps[-1]))
    panel.legend(title="start (optimizer)", frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    panel.set_title(f"{result['config']['num_tasks']} new images, 95% CI; dashed: MAML after two steps")
    grid = right.subplots(len(pictures), len(shown) + 1, squeeze=False)
    for (name, row), axes in zip(pictures.items(), grid, strict=True):
        for step, axis in zip(shown, axes, strict=False):
            _show(axis, row[step])
        _show(axes[-1], image)
        axes[0].set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center")
    for axis, title in zip(grid[0], [*(f"{step} steps" for step in shown), "image"], strict=True):
        axis.set_title("1 step" if title == "1 steps" else title, fontsize=10)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def _show(axis, values: np.ndarray) -> None:
    axis.imshow(np.clip(np.nan_to_num(values), 0.0, 1.0), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
