"""Floating-point operations of a computation's matmuls, and the peak throughput of this machine."""

import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import jaxmaml
from benchmarks.speed.cases import Case
from jaxmaml.jax_internals import CONVOLUTION, DOT_GENERAL, jaxprs_in_params


@functools.cache
def needed(case: Case) -> int:
    """Operations in the matmuls and convolutions of one meta-step by reverse over reverse, without recomputation."""
    params, tasks = case.problem()
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    loss_of = case.loss_fn(plain=True)

    def loss_fn(params, batch):
        value = loss_of(params, batch)
        return value[0] if isinstance(value, tuple) else value

    def query_loss(params, task: jaxmaml.Task):
        for _ in range(case.num_inner_steps):
            grads = jax.grad(loss_fn)(params, task.support)
            params = jax.tree.map(lambda p, g: p - case.step_size * g, params, grads)
        return loss_fn(params, task.query)

    return case.num_tasks * count(jax.make_jaxpr(jax.grad(query_loss))(params, task).jaxpr)


def count(jaxpr) -> int:
    """Multiplications and additions in the matmuls and convolutions of `jaxpr`, loops included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive is DOT_GENERAL:
            (contracting, _), _ = eqn.params["dimension_numbers"]
            lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
            total += 2 * out.size * math.prod(lhs.shape[axis] for axis in contracting)
        elif eqn.primitive is CONVOLUTION:
            dims = eqn.params["dimension_numbers"]
            lhs, rhs = (var.aval for var in eqn.invars)
            window = math.prod(rhs.shape[axis] for axis in dims.rhs_spec[2:])
            # The smaller of two counts; the zeros between the inputs of a dilated convolution are not counted.
            holes = math.prod(eqn.params["lhs_dilation"])
            by_output = eqn.outvars[0].aval.size * window * rhs.shape[dims.rhs_spec[1]] // holes
            by_input = lhs.size * window * rhs.shape[dims.rhs_spec[0]]
            total += 2 * min(by_output, by_input)
        inside = sum(count(sub) for sub in jaxprs_in_params(eqn.params))
        total += inside * eqn.params.get("length", 1)
    return total


def product_rates() -> dict[str, float]:
    """Operations per second of a large matmul, and of many matmuls of the size of Conv4-64's second convolution.

    Each is the fastest of many runs, since other load can only make a run slower.
    """
    side, batch = (8192, 1024) if jax.default_backend() == "gpu" else (2048, 32)
    shapes = {
        f"{side} x {side} x {side}": ((side, side), (side, side)),
        f"{batch} of 245 x 576 x 64": ((batch, 245, 576), (batch, 576, 64)),
    }
    return {
        name: 2 * math.prod(a) * b[-1] / fastest_seconds(jnp.matmul, _random(a), _random(b))
        for name, (a, b) in shapes.items()
    }


def copy_rate() -> float:
    """Bytes per second, read and written, of scaling a large array; the fastest of many runs."""
    x = _random((1 << 28 if jax.default_backend() == "gpu" else 1 << 26,))
    return 2 * x.nbytes / fastest_seconds(lambda x: 1.5 * x, x)


def _random(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def fastest_seconds(function: Callable, *args: jax.Array, repeats: int = 100) -> float:
    """The time of a compiled function: the fastest of `repeats` runs."""
    compiled = jax.jit(function).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    # On a GPU several calls in a row, because launching a call can take as long as computing it.
    calls = 10 if jax.default_backend() == "gpu" else 1
    seconds = []
    for _ in range(max(1, repeats // calls)):
        start = time.perf_counter()
        jax.block_until_ready([compiled(*args) for _ in range(calls)])
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)
