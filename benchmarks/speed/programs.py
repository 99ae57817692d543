"""Compiling programs for the speed benchmark, comparing their gradients and counting their costs."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.common import reporting
from benchmarks.speed import traffic


def build(function: Callable, *args: Any, **options: Any) -> tuple[Any, float]:
    """A compiled program and its compile time in seconds; `options` are XLA's."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile(compiler_options=options)
    return compiled, time.perf_counter() - start


def results(function: Callable, compiled: Any, *args: Any) -> tuple[Callable, Callable]:
    """The result to compare, with float32 matmuls, and the deviation of the timed program's gradient from it."""

    def timed():
        return jax.device_get(compiled(*args))

    if jax.default_backend() == "cpu":
        return timed, lambda: 0.0
    with jax.default_matmul_precision("float32"):
        # Without XLA's search for the fastest kernels, which takes long, since this program is not timed.
        exact, _ = build(function, *args, xla_gpu_autotune_level=0)
    result = functools.cache(lambda: jax.device_get(exact(*args)))
    return result, lambda: distance(timed(), result())


def distance(there: tuple[Any, Any], here: tuple[Any, Any]) -> float:
    """The distance of two results' gradients, as a share of the largest entry."""
    other, own = flat(there[1]), flat(here[1])
    return float(np.abs(other - own).max() / np.abs(own).max())


def costs(compiled: Any, seconds: float, rounding: Callable[[], float]) -> dict[str, Any]:
    """The costs of a program, as `Implementation.costs`."""
    found = {
        "compile_seconds": seconds,
        "memory_bytes": reporting.temporaries(compiled),
        "memory_is": "XLA's temporaries",
        "rounding": rounding(),
    }
    if jax.default_backend() == "gpu" and (moved := traffic.bytes_moved(compiled.as_text())):
        found["bytes_moved"] = moved
    return found


def flat(tree: Any) -> np.ndarray:
    """The leaves of `tree` in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
