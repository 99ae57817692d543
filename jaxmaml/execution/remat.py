"""A scan over inner steps that keeps for its derivative what it is told to, and computes the rest again."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmaml.execution.binomial_checkpointing import binomial_scan
from jaxmaml.execution.memory_estimate import num_products, peak_bytes
from jaxmaml.types import INNER_GRADIENT, PyTree

# A loop of few steps that hold little is written out: nothing is stacked, and XLA finds what the derivative would
# compute again. On a CPU 25 sinusoid tasks of 5 inner steps take 0.85 of the time, a fifth longer to compile. A GPU has
# memory for larger ones: 5 steps of Conv4 take 0.86 of the time, 1.6 to 3.1 times the memory, and no longer to compile;
# a transformer's, of 39 products each where Conv4's have 14, had not compiled after three times as long.
_FEW_STEPS = 5
_FEW_PRODUCTS = 20
_CPU_BYTES = 1 << 18
_DEVICE_BYTES = 1 << 28


def keeps_all(length: int, remat: str) -> bool:
    """Whether the derivative of the loop finds all it needs, and computes nothing again.

    By default one step alone does: it has no other step's memory to pay for.
    """
    return remat == "none" or (remat == "gradients" and length == 1)


def remat_scan(step: Callable, start: PyTree, length: int, remat: str) -> tuple[PyTree, PyTree]:
    """`lax.scan(step, start, arange(length))`, rematerialised as `remat` says.

    Args:
      step: `(carry, index) -> (carry, out)`.
      start: The first carry.
      length: Number of steps.
      remat: `"none"`; `"gradients"`: keep carries and what is named `INNER_GRADIENT`; `"steps"`: keep carries;
        `"recursive"`: keep few carries of more than ten. One step is not looped over; see `keeps_all`. Nor are a few
        small ones, where `"gradients"` keeps whatever XLA finds useful.
    """
    if remat == "recursive" and length > 10:
        return binomial_scan(step, start, length, repeats=math.ceil(math.log10(length)))
    written_out = remat in ("gradients", "none") and _are_few(step, start, length)
    if not keeps_all(length, remat):
        names = [INNER_GRADIENT] if remat == "gradients" else []
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    if length == 1:
        # A loop would carry the first parameters, the same for all tasks, as one copy a task.
        carry, out = step(start, jnp.zeros((), int))
        return carry, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), out)
    return jax.lax.scan(step, start, jnp.arange(length), unroll=length if written_out else 1)


def _are_few(step: Callable, start: PyTree, length: int) -> bool:
    if not 1 < length <= _FEW_STEPS:
        return False
    jaxpr = jax.make_jaxpr(step)(start, jnp.zeros((), int)).jaxpr
    room = _CPU_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    return length * peak_bytes(jaxpr) <= room and num_products(jaxpr) <= _FEW_PRODUCTS
