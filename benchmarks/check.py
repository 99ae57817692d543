"""Whether the committed results keep what is promised of them.

python -m benchmarks.check

A bar that fails after a new measurement is either a regression to mend, or a promise to change together with the pages
that make it.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from benchmarks.speed import tables

RESULTS = pathlib.Path(__file__).parent / "results"
OTHERS = ("plain_jax", "torch_func", "higher_loop", "torchopt_loop", "learn2learn_loop")
# By case of `speed/meta_step.json`: how many times as long as jaxmaml's step each baseline has to take.
SPEED = {
    "omniglot-5w1s-1step": {"torch_func": 2, "learn2learn_loop": 4, "higher_loop": 4, "plain_jax": 60},
    "mini-imagenet-5w1s-5steps": dict.fromkeys(OTHERS, 1.9),
    "sinusoid-1step": {"torch_func": 8, "learn2learn_loop": 60},
    "sinusoid-5steps": {"torch_func": 8, "learn2learn_loop": 60},
    "resnet12-5w1s-1step": dict.fromkeys(OTHERS, 1),
    "transformer-5w5s-5steps": dict.fromkeys(OTHERS, 1),
    "mlp-tanh-100steps-recursive": {"plain_jax": 1 / 0.6},
}
# The largest memory of jaxmaml's step in MB, and how many times as much plain JAX has to take.
MEMORY = {"omniglot-5w1s-1step": 20, "mini-imagenet-5w1s-5steps": 200}
MEMORY_RATIO = {"mlp-100steps-recursive": 50, "mlp-tanh-100steps-recursive": 50}

#: What is promised, and whether it is so.
Verdict = tuple[str, bool]


def read(path: str) -> dict[str, Any]:
    """A committed result file, by its path in `results`."""
    return json.loads((RESULTS / path).read_text())


def speed(result: dict[str, Any]) -> Iterator[Verdict]:
    """Times and memory of `benchmarks.meta_step`."""
    for case, bars in SPEED.items():
        rows, ours = _rows(result, case)
        for name, bar in bars.items():
            ratio = rows[name]["median_ms"] / ours["median_ms"]
            yield (
                f"{case}: {name} takes at least {bar:.3g} times as long as jaxmaml (measured: {ratio:.3g})",
                ratio >= bar,
            )
    for case, megabytes in MEMORY.items():
        taken = _rows(result, case)[1]["memory_bytes"] / 1e6
        yield f"{case}: at most {megabytes} MB (measured: {taken:.3g})", taken <= megabytes
    for case, bar in MEMORY_RATIO.items():
        rows, ours = _rows(result, case)
        ratio = rows["plain_jax"]["memory_bytes"] / ours["memory_bytes"]
        yield f"{case}: plain JAX takes at least {bar} times the memory (measured: {ratio:.3g})", ratio >= bar


def pieces(result: dict[str, Any]) -> Iterator[Verdict]:
    """No step is slower than that of an earlier version by more than 15%."""
    ours = tables.implementations_of(result)[0]
    for case, measured in result["cases"].items():
        ratio = measured["rows"][ours]["median_ms"] / measured["rows"][f"{ours}_before"]["median_ms"]
        yield f"{case}: at most 1.15 times as long as before (measured: {ratio:.3g})", ratio < 1.15


def sinusoids(result: dict[str, Any]) -> Iterator[Verdict]:
    """The MAML paper's figure 2, to its two digits, and the loss of the best single predictor."""
    rows = result["settings"]["5-shot"]
    for step, bar in ((1, 0.67), (5, 0.38), (10, 0.35)):
        loss = rows["MAML"]["mean"][step]
        promise = f"sinusoids: MAML's loss after {step} steps is at most {bar} (measured: {loss:.3g})"
        yield promise, round(loss, 2) <= bar
    joint = rows["joint training"]
    yield "sinusoids: joint training is at 3.006", abs(joint["mean"][0] - 3.006) < 2 * joint["ci95"][0]
    yield "sinusoids: at least 600 tasks", result["config"]["num_tasks"] >= 600


def omniglot(result: dict[str, Any]) -> Iterator[Verdict]:
    """MAML on 5-way 1-shot Omniglot after half an hour of training at most."""
    best = max(result["settings"]["1 query a class"]["MAML"]["mean"])
    yield f"Omniglot: MAML's accuracy is at least 97.5% (measured: {best:.1%})", best >= 0.975
    yield "Omniglot: at most 30 minutes of training", result["training"]["MAML"]["seconds"] <= 30 * 60
    yield "Omniglot: at least 600 tasks", result["config"]["num_tasks"] >= 600


def fields(result: dict[str, Any]) -> Iterator[Verdict]:
    """MAML's start for neural fields, and what is fair to the standard one."""
    rows, two = result["rows"], result["steps"].index(2)
    level = rows["MAML"]["mean"][two]
    yield f"fields: MAML has at least 35 dB after two steps (measured: {level:.1f})", level >= 35
    standard = rows["standard initialisation"]
    factor = standard["factor"] or result["steps"][-1] / 2
    yield f"fields: the standard start needs at least 10 times as many steps (measured: {factor:g})", factor >= 10
    tried = [name.split()[0] for name in standard["candidates"]]
    yield (
        "fields: the standard start tries at least four rates each of SGD and Adam",
        all(tried.count(name) >= 4 for name in ("SGD", "Adam")),
    )
    yield "fields: at least 16 images", result["config"]["num_tasks"] >= 16


def navigation(result: dict[str, Any]) -> Iterator[Verdict]:
    """The returns of the MAML paper's table after 1, 2 and 3 steps, in a quarter of an hour."""
    (rows,) = result["settings"].values()
    for step, bar in ((1, -11.7), (2, -3.4), (3, -3.3)):
        found = rows["MAML"]["mean"][step]
        yield f"navigation: MAML's return after {step} steps is at least {bar} (measured: {found:.3g})", found >= bar
    yield "navigation: at least 40 goals", result["config"]["num_tasks"] >= 40
    minutes = sum(row["seconds"] for row in result["training"].values()) / 60
    yield f"navigation: at most 15 minutes of training (measured: {minutes:.3g})", minutes <= 15


CHECKS = {
    "speed/meta_step.json": speed,
    "speed/meta_step_pieces.json": pieces,
    "speed/meta_step_pieces_sinusoids.json": pieces,
    "adaptation/step_counts_sinusoid.json": sinusoids,
    "adaptation/step_counts_omniglot.json": omniglot,
    "adaptation/step_counts_fields.json": fields,
    "adaptation/step_counts_navigation.json": navigation,
}


def main() -> None:
    console, failed = Console(), 0
    for path, check in CHECKS.items():
        for promise, holds in check(read(path)):
            console.print(f"{'ok    ' if holds else 'FAILED'} {promise}", soft_wrap=True)
            failed += not holds
    if failed:
        raise SystemExit(f"{failed} of the committed results do not keep what is promised of them.")


def _rows(result: dict[str, Any], case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All rows of a case, and jaxmaml's fastest."""
    rows = result["cases"][case]["rows"]
    return rows, rows[tables.fastest(rows)]


if __name__ == "__main__":
    main()
