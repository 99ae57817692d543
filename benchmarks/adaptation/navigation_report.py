"""The table of `navigation`, and its figure: paths before and after each step."""

import pathlib
from typing import Any

import matplotlib
import rich.table

#: By start: positions `[goals, steps + 1, trajectories, horizon, 2]`, and 1 until a trajectory ends, without the last
#: axis.
Paths = dict[str, tuple[Any, Any]]
#: Those that are pictured.
GOALS = ((-0.4, 0.3), (0.35, 0.35), (0.2, -0.45))


def table(result: dict[str, Any]) -> rich.table.Table:
    ((setting, rows),) = result["settings"].items()
    shown = rich.table.Table(title=f"2D navigation: return after k steps, {setting}, 95% CI")
    shown.add_column("start", no_wrap=True)
    for head in heads(result):
        shown.add_column(head, justify="right")
    for name, row in rows.items():
        shown.add_row(name, *cells(row))
    return shown


def heads(result: dict[str, Any]) -> list[str]:
    return ["inner rate", *(f"k = {k}" for k in range(result["config"]["num_steps"] + 1))]


def cells(row: dict[str, Any]) -> list[str]:
    rate = "-"
    if "rate" in row:
        rate = f"{row['rate']:g}" + (f", then {row['later_rate']:g}" if row["later_rate"] != row["rate"] else "")
    values = [
        "diverged" if mean is None else f"{mean:.2f} ± {ci95:.2f}"
        for mean, ci95 in zip(row["mean"], row["ci95"], strict=True)
    ]
    return [rate, *values]


def markdown(result: dict[str, Any]) -> str:
    """The table for the pages."""
    (rows,) = result["settings"].values()
    columns = heads(result)
    lines = ["| start | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    lines += ["| " + " | ".join([name, *cells(row)]) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def draw(paths: Paths, path: pathlib.Path) -> None:
    """A row for each start, and a panel for each number of steps."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    columns = next(iter(paths.values()))[0].shape[1]
    size = (2.6 * columns, 2.7 * len(paths))
    figure, panels = plt.subplots(len(paths), columns, figsize=size, squeeze=False, layout="constrained")
    ticks = (-0.5, 0, 0.5)
    for row, (name, (positions, running)) in zip(panels, paths.items(), strict=True):
        for k, panel in enumerate(row):
            for index, goal in enumerate(GOALS):
                for walked, mask in zip(positions[index, k], running[index, k] > 0, strict=True):
                    panel.plot(*walked[mask].T, color=f"C{index}", linewidth=0.9, alpha=0.8)
                panel.plot(*goal, marker="*", markersize=12, color=f"C{index}", markeredgecolor="black")
            panel.plot(0, 0, marker="o", color="black", markersize=4)
            panel.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), aspect="equal", xticks=ticks, yticks=ticks)
            panel.set_title(f"{name}, {k} step{'' if k == 1 else 's'}", fontsize=9)
    figure.suptitle("2D navigation: three paths to each of three goals, from the dot to the star")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")
