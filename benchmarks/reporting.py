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
