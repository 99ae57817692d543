"""Result files, tables and figures that every benchmark shares."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

import jax


def command_line(module: str) -> str:
    """The command as typed, without the reader's own paths: their last parts say enough."""
    hidden = {"--data-dir": "DATA_DIR", "--output-dir": "OUTPUT_DIR"}
    words = list(sys.argv[1:])
    for index, word in enumerate(words[:-1]):
        if word in hidden:
            words[index + 1] = hidden[word]
    return shlex.join(["python", "-m", module, *words])


def environment() -> dict[str, Any]:
    """Versions and device."""
    packages = ("jaxmaml", "jax", "jaxlib", "flax", "optax", "chex", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def write_json(path: pathlib.Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


def step_sizes(row: dict[str, Any]) -> str:
    """The step sizes of a step-count row: the first, and the later ones where they differ."""
    later = f", then {row['later_step_size']:g}" if "later_step_size" in row else ""
    return f"{row['step_size']:g}{later}"


def markdown(result: dict[str, Any], setting: str, steps: tuple[int, ...]) -> str:
    """A setting of a step-count result as a Markdown table."""
    percent = result["metric"] == "query accuracy"
    rows = result["settings"][setting]
    targets = next(iter(rows.values()))["steps_to"]
    heads = [f"{100 * float(t):g}%" if percent else t for t in targets]
    lines = [
        "| start | step size | " + " | ".join([*(f"k = {k}" for k in steps), *(f"steps to {h}" for h in heads)]) + " |",
        "| --- |" + " --: |" * (1 + len(steps) + len(heads)),
    ]
    for name, row in rows.items():
        cells = [
            f"{100 * row['mean'][k]:.1f} ± {100 * row['ci95'][k]:.1f}"
            if percent
            else f"{row['mean'][k]:.3f} ± {row['ci95'][k]:.3f}"
            for k in steps
        ]
        last = len(row["mean"]) - 1
        counts = [f"> {last}" if n is None else str(n) for n in row["steps_to"].values()]
        lines.append(f"| {name} | {step_sizes(row)} | " + " | ".join([*cells, *counts]) + " |")
    return "\n".join(lines)
