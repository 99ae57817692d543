"""A scan over inner steps with a choice of what is kept for its derivative; the rest is recomputed."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmaml.execution.binomial_checkpointing import binomial_scan
from jaxmaml.execution.memory_estimate import num_matmuls, peak_bytes
from jaxmaml.types import COLLECTED_BATCH, INNER_GRADIENT, PyTree

# A loop of a few small steps is unrolled: nothing is stacked, and XLA chooses what the derivative recomputes. On a CPU,
# 25 sinusoid tasks of 5 inner steps take 0.85 of the time, and a fifth longer to compile. A GPU has memory for larger
# steps: 5 steps of Conv4 take 0.86 of the time and 1.6 to 3.1 times the memory, and compile as fast. A transformer's 5
# steps, of 39 matmuls each where Conv4's have 14, had not compiled after three times as long.
_FEW_STEPS = 5
_FEW_MATMULS = 20
_CPU_BYTES = 1 << 18
_DEVICE_BYTES = 1 << 28


def keeps_all(length: int, remat: str) -> bool:
    """Whether everything is kept for the derivative of the loop, so that nothing is recomputed.

    By default this is so for a single step, whose memory is not multiplied by a number of steps.
    """
    return remat == "none" or (remat == "gradients" and length == 1)


def remat_scan(step: Callable, start: PyTree, length: int, remat: str) -> tuple[PyTree, PyTree]:
    """`lax.scan(step, start, arange(length))`, rematerialised as `remat` says.

    Args:
      step: `(carry, index) -> (carry, out)`.
      start: The first carry.
      length: The number of steps.
      remat: `"none"` keeps everything; `"gradients"` keeps the carries and the values named `INNER_GRADIENT`; `"steps"`
        keeps the carries; both keep the batches named `COLLECTED_BATCH`. `"recursive"` keeps a few of the carries if
        there are more than ten steps. A single step is not a loop, and `_FEW_STEPS` small steps are unrolled.
    """
    if remat == "recursive" and length > 10:
        return binomial_scan(step, start, length, repeats=math.ceil(math.log10(length)))
    unrolled = remat in ("gradients", "none") and _are_few(step, start, length)
    if not keeps_all(length, remat):
        names = [INNER_GRADIENT] if remat == "gradients" else []
        policy = jax.checkpoint_policies.save_only_these_names(COLLECTED_BATCH, *names)
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    if length == 1:
        # A loop would carry one copy for each task of the first parameters, which all tasks share.
        carry, out = step(start, jnp.zeros((), int))
        return carry, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), out)
    return jax.lax.scan(step, start, jnp.arange(length), unroll=length if unrolled else 1)


def _are_few(step: Callable, start: PyTree, length: int) -> bool:
    if not 1 < length <= _FEW_STEPS:
        return False
    jaxpr = jax.make_jaxpr(step)(start, jnp.zeros((), int)).jaxpr
    room = _CPU_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    return length * peak_bytes(jaxpr) <= room and num_matmuls(jaxpr) <= _FEW_MATMULS
