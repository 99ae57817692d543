"""Estimates of memory and of matmuls from a traced program, and the number of tasks that fit."""

from collections.abc import Callable

import jax

from jaxmaml.execution.rewriting.deferred import implementation
from jaxmaml.jax_internals import CONVOLUTION, DOT_GENERAL, Literal, jaxprs_in_params, tie_p

# A chunk of up to this size stays in a CPU cache well enough. Where this was measured (1 MiB of second-level cache for
# each core, 32 MiB of third-level cache), 25 sinusoid tasks of 5 inner steps and 0.09 MB take 1.12 ms for an outer step
# at once and 1.28 ms in chunks of 9; an MLP of 0.7 MB for each task takes 18.3 ms one by one and 15.9 ms by two to
# eight; Conv4 of 6 MB is fastest one by one.
_CPU_BYTES = 3_000_000

# On other devices few large kernels are best: as much as fits, with room for the parameters and for other work.
_DEVICE_SHARE = 0.5


def tasks_that_fit(function: Callable, *args_of_one_task) -> tuple[int, str]:
    """The number of tasks that fit at once, and the reason in words.

    Args:
      function: A function of a batch of tasks.
      args_of_one_task: Its arguments for a batch of one task.
    """
    peak = peak_bytes(jax.make_jaxpr(function)(*args_of_one_task).jaxpr)
    platform = jax.default_backend()
    if platform == "cpu":
        room, kind = _CPU_BYTES, "the cache"
    else:
        stats = jax.local_devices()[0].memory_stats() or {}
        room, kind = int(_DEVICE_SHARE * stats.get("bytes_limit", 1 << 62)), "the device"
    fits = max(1, room // max(1, peak))
    return fits, f"one holds about {peak / 1e6:.3g} MB, and {room / 1e6:.3g} MB fit {kind} ({platform})."


def peak_bytes(jaxpr) -> int:
    """The peak number of live bytes, without the inputs, if `jaxpr` runs equation by equation.

    XLA fuses equations and so needs less. The estimate is within a factor of a few of what the compiled program
    allocates, and needs no compilation.
    """
    last_use = {}
    for index, eqn in enumerate(jaxpr.eqns):
        for var in eqn.invars:
            if not isinstance(var, Literal):
                last_use[var] = index
    for var in jaxpr.outvars:
        if not isinstance(var, Literal):
            last_use[var] = len(jaxpr.eqns)
    made = set()
    alive = peak = 0
    for index, eqn in enumerate(jaxpr.eqns):
        inside = max((peak_bytes(sub) for sub in _jaxprs_inside(eqn)), default=0)
        if jax.default_backend() != "cpu":
            # XLA keeps what the derivative of unrolled steps needs: see `remat`. On a CPU these steps are small.
            inside *= eqn.params.get("unroll", 1)
        outputs = [var for var in eqn.outvars if var in last_use]
        alive += sum(_num_bytes(var.aval) for var in outputs)
        made.update(outputs)
        if eqn.primitive is not tie_p:  # Its results are its operands.
            peak = max(peak, alive + inside)
        for var in {var for var in eqn.invars if not isinstance(var, Literal)}:
            if var in made and last_use[var] == index:
                alive -= _num_bytes(var.aval)
    return peak


def num_matmuls(jaxpr) -> int:
    """The number of matmuls and convolutions in `jaxpr`; those of a loop are counted once."""
    total = 0
    for eqn in jaxpr.eqns:
        whole = eqn.primitive in (DOT_GENERAL, CONVOLUTION) or implementation(eqn) is not None
        total += 1 if whole else sum(map(num_matmuls, jaxprs_in_params(eqn.params)))
    return total


def _jaxprs_inside(eqn):
    function = implementation(eqn)
    if function is None:
        return jaxprs_in_params(eqn.params)
    return [jax.make_jaxpr(function)(*(var.aval for var in eqn.invars)).jaxpr]


def _num_bytes(aval) -> int:
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
