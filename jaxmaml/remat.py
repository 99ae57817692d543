"""A scan over inner steps that keeps for its derivative what it is told to, and computes the rest again."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmaml.types import PyTree

#: The name (`jax.ad_checkpoint.checkpoint_name`) of what `"gradients"` keeps.
KEPT = "inner_gradient"


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
      remat: `"none"`; `"gradients"`: keep carries and what is named `KEPT`; `"steps"`: keep carries;
        `"recursive"`: keep few carries. One step is not looped over; see `keeps_all`.
    """
    if remat == "recursive" and length > 1:
        return _recursive(step, start, length)
    if not keeps_all(length, remat):
        names = [KEPT] if remat == "gradients" else []
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    if length == 1:
        # A loop would carry the first parameters, the same for all tasks, as one copy a task.
        carry, out = step(start, jnp.zeros((), int))
        return carry, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), out)
    return jax.lax.scan(step, start, jnp.arange(length))


def _recursive(step: Callable, start: PyTree, length: int) -> tuple[PyTree, PyTree]:
    """Nested scans of `base` blocks each, every block rematerialised (Griewank, 1992, with equal blocks).

    While one block of a level is differentiated, the level keeps the carries at its `base` blocks: with `L`
    levels, `L base` carries for `base^L` steps, each of which is computed at most `L` times before its
    derivative. Steps past `length` are skipped.
    """
    levels = math.ceil(round(math.log10(length), 9))
    base = next(b for b in itertools.count(1) if b**levels >= length)
    first = jnp.zeros((), int)
    skipped = jax.eval_shape(step, start, first)[1]

    def guarded(carry, index):
        def skip(carry, index):
            return carry, jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), skipped)

        return jax.lax.cond(index < length, step, skip, carry, index)

    def block(level: int) -> Callable:
        if level == 0:
            return step if base**levels == length else guarded
        inside = jax.checkpoint(block(level - 1), prevent_cse=False)
        return lambda carry, first: jax.lax.scan(inside, carry, first + base ** (level - 1) * jnp.arange(base))

    carry, outs = block(levels)(start, first)
    return carry, jax.tree.map(lambda out: out.reshape(-1, *out.shape[levels:])[:length], outs)
