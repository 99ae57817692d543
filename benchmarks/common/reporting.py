"""Result files, tables and figures that every benchmark shares."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax


def command_line(module: str) -> str:
    """The command as typed, with placeholders for the user's paths."""
    hidden = {"--data-dir": "DATA_DIR", "--output-dir": "OUTPUT_DIR", "--run": "RUN", "--before": "CHECKOUT"}
    words = list(sys.argv[1:])
    for index, word in enumerate(words[:-1]):
        if word in hidden:
            words[index + 1] = hidden[word]
    return shlex.join(["python", "-m", module, *words])


def versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions() if dist.name}
    return {package: found[package] for package in packages if package in found}


def environment() -> dict[str, Any]:
    """Versions and device."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions("jaxmaml", "jax", "jaxlib", "flax", "optax", "chex", "numpy"),
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor() -> str:
    """The model of the processor, if the system reports it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def temporaries(compiled: Any) -> int:
    """Bytes that XLA reserves for a compiled function beside its inputs and outputs, on all of its devices."""
    devices = compiled.runtime_executable().local_devices()
    return len(devices) * compiled.memory_analysis().temp_size_in_bytes


def numbers(values: Any) -> list[float | None]:
    """A number for JSON, in which values that are not finite are `None`."""
    return [float(value) if math.isfinite(value) else None for value in values]


def short(number: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def write_json(path: pathlib.Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(f"wrote {path}")


def percent(value: float | None, ci95: float | None) -> str:
    """A paper's number in per cent, with its interval if there is one."""
    if value is None:
        return "-"
    return f"{value:g}" if ci95 is None else f"{value:g} ± {ci95:g}"


def step_sizes(row: dict[str, Any]) -> str:
    """The step sizes of a step-count row: the first, and the later ones where they differ."""
    later = f", then {row['later_step_size']:g}" if "later_step_size" in row else ""
    return f"{row['step_size']:g}{later}"


def cost(name: str) -> Callable[[dict[str, Any]], str]:
    """A column of the cost of an outer step; empty for untrained parameters."""
    return lambda row: f"{row[name]:.3g}" if name in row else "-"


def first_columns(rows: dict[str, Any]) -> dict[str, Callable[[dict[str, Any]], str]]:
    """The columns before the curve: the step size, or for an algorithm the cost of an outer step."""
    if all("step_size" in row for row in rows.values()):
        return {"step size": step_sizes}
    return {"ms an outer step": cost("ms_per_outer_step"), "MB": cost("megabytes")}


def label(name: str, row: dict[str, Any]) -> str:
    return f"{name} ({step_sizes(row)})" if "step_size" in row else name


def cells(row: dict[str, Any], steps: tuple[int, ...], percent: bool) -> list[str]:
    """The mean and its interval after each of `steps`, then the steps needed to reach each target."""
    unit, digits = (100, 1) if percent else (1, 3)

    def cell(mean: float | None, ci95: float | None) -> str:
        if mean is None:
            return "diverged"
        if ci95 is None or mean > 1000:
            return f"{mean:.0e}"
        return f"{unit * mean:.{digits}f} ± {unit * ci95:.{digits}f}"

    values = [cell(row["mean"][k], row["ci95"][k]) for k in steps]
    last = len(row["mean"]) - 1
    return values + [f"> {last}" if count is None else str(count) for count in row["steps_to"].values()]


def heads(targets: list[float], steps: tuple[int, ...], percent: bool) -> list[str]:
    """The columns of `cells`."""
    return [f"k = {k}" for k in steps] + [f"steps to {100 * t:g}%" if percent else f"steps to {t:g}" for t in targets]


def markdown(result: dict[str, Any], setting: str, steps: tuple[int, ...]) -> str:
    """A setting of a step-count result as a Markdown table."""
    percent = result["metric"] == "query accuracy"
    rows = result["settings"][setting]
    targets = [float(target) for target in next(iter(rows.values()))["steps_to"]]
    first = first_columns(rows)
    columns = [*first, *heads(targets, steps, percent)]
    lines = ["| start | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name, *(c(row) for c in first.values()), *cells(row, steps, percent)]) + " |")
    return "\n".join(lines)
