"""Which is faster for a convolution and its VJPs, layer by layer: matmuls, or XLA's own convolution.

    python -m benchmarks.convolutions

The layers of the paper's models and of ResNet-12, with one kernel for all tasks and with one for each. `chosen` is the
choice of `jaxmaml.nn.conv_general_dilated`; its bounds (`jaxmaml/nn/conv/cpu.py`) are based on such tables.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax import lax
from rich.console import Console
from rich.table import Table

import jaxmaml
from benchmarks.common import reporting
from benchmarks.speed import flops
from jaxmaml.nn.conv import cpu
from jaxmaml.nn.conv.lowering import by_matmuls, sizes_of
from jaxmaml.nn.conv.spec import OPERANDS, ConvSpec


class Layer(NamedTuple):
    """A layer of 3 x 3 windows, and the number of a task's images that it processes."""

    side: int
    stride: int
    channels: int
    filters: int
    num_examples: int

    @property
    def spec(self) -> ConvSpec:
        side, stride = (self.side, self.side), (self.stride, self.stride)
        padding = lax.padtype_to_pads(side, (3, 3), stride, "SAME")
        output = tuple(-(-n // s) for n, s in zip(side, stride, strict=True))
        edges = tuple((int(low), int(high)) for low, high in padding)
        return ConvSpec(side, (3, 3), stride, edges, (1, 1), (1, 1), output)


LAYERS = {
    "Conv4, Omniglot, 1": Layer(28, 2, 1, 64, 5),
    "Conv4, Omniglot, 2": Layer(14, 2, 64, 64, 5),
    "Conv4, Omniglot, 3": Layer(7, 2, 64, 64, 5),
    "Conv4, 84 x 84, 1": Layer(84, 1, 3, 32, 5),
    "Conv4, 84 x 84, 2": Layer(42, 1, 32, 32, 5),
    "Conv4, 84 x 84, 2, queries": Layer(42, 1, 32, 32, 75),
    "Conv4, 84 x 84, 3": Layer(21, 1, 32, 32, 5),
    "ResNet-12, 2": Layer(16, 1, 64, 128, 5),
    "ResNet-12, 3": Layer(8, 1, 256, 256, 5),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
      num_tasks: The number of tasks at once.
      layers: Names of `LAYERS`.
      repeats: The number of runs, of which the fastest counts.
      output_dir: The folder of the result file.
    """

    num_tasks: int = 4
    layers: tuple[str, ...] = tuple(LAYERS)
    repeats: int = 30
    output_dir: pathlib.Path = pathlib.Path("results")


def main(config: Config) -> None:
    jaxmaml.task_mesh(1)
    result: dict[str, Any] = {
        "command": reporting.command_line("benchmarks.convolutions"),
        "config": {**dataclasses.asdict(config), "output_dir": None},
        "environment": reporting.environment(),
        "protocol": "float32, one thread, as on a device of task_mesh; microseconds, the fastest of the repeats",
        "rows": [],
    }
    for name in config.layers:
        for shared in (True, False):
            for out in OPERANDS:
                result["rows"].append(measure(config, name, out, shared))
                row = result["rows"][-1]
                print(
                    f"{name}, {out}, {'one kernel' if shared else 'a kernel a task'}: {row['microseconds']}", flush=True
                )
        reporting.write_json(config.output_dir / "convolutions.json", result)
    Console().print(table(result["rows"]))


def measure(config: Config, name: str, out: str, shared: bool) -> dict[str, Any]:
    """The time of both implementations in microseconds, and which one is chosen."""
    layer = LAYERS[name]
    groups, examples = (1, config.num_tasks * layer.num_examples) if shared else (config.num_tasks, layer.num_examples)
    spec = layer.spec
    shapes = {
        "image": (groups, examples, *spec.image, layer.channels),
        "kernel": (groups, *spec.window, layer.channels, layer.filters),
        "output": (groups, examples, *spec.output, layer.filters),
    }
    pair = [jax.random.normal(jax.random.key(seed), shapes[part]) for seed, part in enumerate(OPERANDS[out])]
    dtype = jnp.dtype("float32")
    ways: dict[str, Callable] = {
        "products": functools.partial(by_matmuls, out=out, spec=spec, precision=None, dtype=dtype)
    }
    chosen = "products"
    if cpu.possible(spec, dtype):
        ways["own"] = functools.partial(cpu.convolve, out=out, spec=spec, precision=None)
        sizes = sizes_of(pair[0], pair[1], out, spec)
        chosen = "own" if cpu.gains(out, sizes, one_thread=True) else "products"
    times = {way: 1e6 * flops.fastest_seconds(f, *pair, repeats=config.repeats) for way, f in ways.items()}
    return {
        "layer": name,
        **layer._asdict(),
        "out": out,
        "kernels": groups,
        "microseconds": {way: round(time, 1) for way, time in times.items()},
        "chosen": chosen,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    view = Table(title="own / matmuls: below 1, XLA's own is faster; * is chosen")
    for column in ("layer", "kernels", *OPERANDS):
        view.add_column(column, justify="right" if column in OPERANDS else "left")
    for first in range(0, len(rows), len(OPERANDS)):
        three = rows[first : first + len(OPERANDS)]
        kernels = "one" if three[0]["kernels"] == 1 else "one a task"
        view.add_row(three[0]["layer"], kernels, *map(_ratio, three))
    return view


def _ratio(row: dict[str, Any]) -> str:
    times = row["microseconds"]
    if "own" not in times:
        return "-"
    return f"{times['own'] / times['products']:.2f}{'*' if row['chosen'] == 'own' else ' '}"


if __name__ == "__main__":
    main(tyro.cli(Config))
