"""What the baselines share: one baseline is a way to build `tasks -> (loss, meta-gradient)`.

Each baseline module has `meta_gradient(model, params, *, num_inner_steps, step_size)`, which returns that function,
and a `BASELINE` made of it. The function reads `params` in place, so an optimizer may move them between calls.
"""

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

import jaxmaml
from benchmarks.baselines import torch_models

_ON_CARD = torch_models.DEVICE.type == "cuda"

Tensors = dict[str, torch.Tensor]
MetaGradient = Callable[[jaxmaml.Task], tuple[torch.Tensor, Tensors]]


class Net(torch.nn.Module):
    """A model as a module, for the libraries that adapt modules."""

    def __init__(self, model: str, params: Tensors):
        super().__init__()
        self.model, self.names = model, tuple(params)
        for name, value in params.items():
            self.register_parameter(name, value)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch_models.loss(self.model, {name: getattr(self, name) for name in self.names}, x, y)


def make_step(
    build: Callable[..., MetaGradient],
    model: str,
    params: dict,
    tasks: jaxmaml.Task,
    *,
    channels_last: bool = True,
    as_graph: bool = False,
    **options: Any,
) -> Callable[[], tuple[torch.Tensor, Tensors]]:
    """Prepare one meta-step; `step()` returns the loss and the gradients in torch's own form.

    On a CPU, task by task, channels last in memory is a tenth faster on conv4-mini, and as fast on conv4-omniglot.
    """
    meta_gradient = build(model, _parameters(model, params), **options)
    tasks = torch_models.to_torch_tasks(model, tasks, channels_last)
    run = functools.partial(meta_gradient, tasks)
    if as_graph:
        run = _as_graph(run)

    def step():
        result = run()
        _wait()
        return result

    return step


def make_training(
    build: Callable[..., MetaGradient],
    params: dict,
    *,
    num_tasks: int,
    num_shots: int,
    outer_step_size: float,
    as_graph: bool = False,
    **options: Any,
) -> Callable[[int], torch.Tensor]:
    """Prepare outer iterations on sinusoids: sample tasks, differentiate, update the initial parameters by Adam.

    `train(count)` takes `count` of them and returns their losses.
    """
    parameters = _parameters("mlp", params)
    meta_gradient = build("mlp", parameters, **options)
    optimizer = torch.optim.Adam(parameters.values(), outer_step_size, fused=True, capturable=as_graph)
    dtype = next(iter(parameters.values())).dtype

    def uniform(low, high, *shape):
        return torch.empty(num_tasks, *shape, 1, dtype=dtype, device=torch_models.DEVICE).uniform_(low, high)

    def iterate():
        x = uniform(-5.0, 5.0, 2 * num_shots)
        y = uniform(0.1, 5.0, 1) * torch.sin(x - uniform(0.0, math.pi, 1))
        (x_support, x_query), (y_support, y_query) = x.split(num_shots, 1), y.split(num_shots, 1)
        loss, grads = meta_gradient(jaxmaml.Task((x_support, y_support), (x_query, y_query)))
        for name, value in parameters.items():
            value.grad = grads[name]
        optimizer.step()
        return loss

    run = _as_graph(iterate) if as_graph else iterate

    def train(count):
        # Copied, because a CUDA graph overwrites its previous result.
        losses = torch.stack([run().clone() for _ in range(count)])
        _wait()
        return losses

    return train


def _as_graph(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function` as one CUDA graph, captured at the first call: which launches all of its kernels at once."""

    @functools.cache
    def captured():
        # First on a separate stream, for what happens only once: cuDNN's choices, an optimizer's state.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
        return graph, result

    def replay():
        graph, result = captured()
        graph.replay()
        return result

    return replay


def memory_peak() -> tuple[int, str]:
    """The peak memory so far in bytes, and what it counts."""
    if _ON_CARD:
        return torch.cuda.max_memory_allocated(), "torch's peak on the device"
    # Not by getrusage, which begins with the peak of the parent process.
    status = pathlib.Path("/proc/self/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(peak), "growth of the resident set"


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Use float32 matmuls on a GPU too, to compare results."""
    if _ON_CARD:
        _allow_tf32(False)
    yield
    if _ON_CARD:
        _allow_tf32(True)


def _allow_tf32(allow: bool) -> None:
    torch.set_float32_matmul_precision("high" if allow else "highest")
    torch.backends.cudnn.allow_tf32 = allow


def _wait() -> None:
    if _ON_CARD:
        torch.cuda.synchronize()


def as_numpy(model: str, loss: torch.Tensor, grads: Tensors) -> tuple[float, dict]:
    """Convert a step's result to flax's layout, for comparison."""
    return float(loss), torch_models.to_flax(model, grads)


def over_tasks(params: Tensors, query_loss: Callable[..., torch.Tensor]) -> MetaGradient:
    """Differentiate the mean of `query_loss(x_support, y_support, x_query, y_query)`, one task after another.

    A backward pass for each task frees its graph before the next is built, as the libraries' examples do.
    """

    def meta_gradient(tasks):
        for value in params.values():
            value.grad = None
        total = 0.0
        num_tasks = len(tasks.query[0])
        for task in zip(*tasks.support, *tasks.query, strict=True):
            loss = query_loss(*task) / num_tasks
            loss.backward()
            total = total + loss.detach()
        return total, {name: value.grad for name, value in params.items()}

    return meta_gradient


def _parameters(model: str, params: dict) -> Tensors:
    return {name: torch.nn.Parameter(value) for name, value in torch_models.to_torch(model, params).items()}


class Baseline:
    """The interface of a baseline; see the functions of the same names.

    Args:
      build: The module's `meta_gradient`.
      channels_last: Whether images are channels last in memory.
      as_graph: Whether a step is captured as a CUDA graph.
      exact: The baseline that computes the same in full precision, if that needs another compilation or capture.
    """

    def __init__(
        self,
        build: Callable[..., MetaGradient],
        *,
        channels_last: bool = True,
        as_graph: bool = False,
        exact: "Baseline | None" = None,
    ):
        self.make_step = functools.partial(make_step, build, channels_last=channels_last, as_graph=as_graph)
        self.make_training = functools.partial(make_training, build, as_graph=as_graph)
        self.as_numpy, self.memory_peak, self.full_precision = as_numpy, memory_peak, full_precision
        self.exact = exact
        # The timed program may differ from the compared one by rounding.
        self.inexact = _ON_CARD or exact is not None


if _ON_CARD:
    # TF32, as by default in JAX; and the fastest of cuDNN's algorithms.
    _allow_tf32(True)
    torch.backends.cudnn.benchmark = True
