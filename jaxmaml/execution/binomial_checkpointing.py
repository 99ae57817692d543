"""A scan that keeps few of its carries and recomputes the others for its derivative."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import parameter_selection
from jaxmaml.jax_internals import instantiate, is_symbolic_zero, tie, traced, vary
from jaxmaml.types import PyTree


class Action(NamedTuple):
    """One inner step from the carry in slot `read`, either forward or reverse.

    A forward action stores the next carry in slot `write`; a reverse action differentiates the step.
    """

    step: int
    read: int
    write: int
    reverse: bool


def binomial_scan(step: Callable, start: PyTree, length: int, repeats: int) -> tuple[PyTree, PyTree]:
    """`lax.scan(step, start, arange(length))`, whose derivative keeps as few carries as `repeats` allows.

    With `s` carries in memory, `C(s - 1 + repeats, repeats)` steps can be differentiated in reverse mode if each is
    computed at most `repeats` times before its own derivative, and no schedule does better (Griewank and Walther, 2000,
    https://doi.org/10.1145/347837.347846). The derivative is a scan over the actions of that schedule.

    Args:
      step: `(carry, index) -> (carry, out)`; it may close over values that are differentiated.
      start: The first carry.
      length: The number of steps.
      repeats: The largest number of times that a step is computed before its derivative.
    """
    slots = next(s for s in itertools.count(1) if math.comb(s - 1 + repeats, repeats) >= length)
    actions = list(schedule(0, length, 0, slots - 1))
    indices = np.arange(length)
    apply, constants = traced(step, start, jnp.zeros((), int))

    @jax.custom_vjp
    def loop(consts, start):
        result = jax.lax.scan(lambda carry, index: apply(consts, carry, index), start, indices)
        return tie(result, to=(consts, start))

    def forward(consts, start):
        moving = [c.value if c.perturbed else None for c in consts]
        resting = [None if c.perturbed else c.value for c in consts]
        start = jax.tree.map(lambda leaf: leaf.value, start)

        def kept(state, at):
            carry, buffer = state
            index, slot = at
            buffer = _set(buffer, slot, carry)
            carry, out = apply(parameter_selection.merge(moving, resting), carry, index)
            return (carry, buffer), out

        # The first `length - 1` actions go forwards to the last step, which reads what they wrote.
        written = np.asarray([0, *(action.write for action in actions[: length - 1])])
        buffer = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), start)
        (carry, buffer), outs = jax.lax.scan(kept, (start, buffer), (indices, written))
        return tie((carry, outs), to=(moving, resting, start)), (moving, resting, buffer)

    def backward(residuals, cotangents):
        moving, resting, buffer = residuals
        carry_bar, outs_bar = cotangents
        outs_bar = [
            None if is_symbolic_zero(bar) else bar for bar in jax.tree.leaves(outs_bar, is_leaf=is_symbolic_zero)
        ]

        def differentiated(carry, bars, index):
            moves, rests = _parts(carry)

            def moved(moving, moves):
                carry, out = apply(
                    parameter_selection.merge(moving, resting), parameter_selection.merge(moves, rests), index
                )
                wanted = [o for o, bar in zip(jax.tree.leaves(out), outs_bar, strict=True) if bar is not None]
                return _parts(carry)[0], wanted

            moving_bar, carry_bar = bars
            _, pull_back = jax.vjp(moved, moving, moves)
            step_bar, carry_bar = pull_back((carry_bar, [bar[index] for bar in outs_bar if bar is not None]))
            return carry, (jax.tree.map(jnp.add, moving_bar, step_bar), carry_bar)

        def forwards(carry, bars, index):
            return apply(parameter_selection.merge(moving, resting), carry, index)[0], bars

        def act(state, action):
            buffer, bars = state
            index, read, write, reverse = action
            carry = jax.tree.map(lambda slots: jax.lax.dynamic_index_in_dim(slots, read, keepdims=False), buffer)
            carry, bars = jax.lax.cond(reverse, differentiated, forwards, carry, bars, index)
            return (_set(buffer, write, carry), bars), None

        moves_bar = jax.tree.map(
            lambda bar, slots: instantiate(bar) if _moves(slots) else None, carry_bar, buffer, is_leaf=is_symbolic_zero
        )
        bars = vary((jax.tree.map(jnp.zeros_like, moving), moves_bar), like=(moving, resting, buffer))
        (_, bars), _ = jax.lax.scan(act, (buffer, bars), np.array(actions[length - 1 :]))
        return bars

    loop.defvjp(forward, backward, symbolic_zeros=True)
    return loop(constants, start)


def schedule(first: int, length: int, slot: int, free: int) -> Iterator[Action]:
    """Actions that differentiate `length` steps in reverse, from the carry before step `first` in `slot`.

    Args:
      free: How many slots above `slot` may be used.
    """
    if length == 1:
        yield Action(first, slot, slot, reverse=True)
        return
    repeats = next(r for r in itertools.count(1) if math.comb(free + r, r) >= length)
    # Both parts fit: the right one has one slot fewer and equally many repeats, the left one repeat fewer.
    left = min(math.comb(free + repeats - 1, repeats - 1), length - math.comb(free - 1 + repeats - 1, repeats - 1))
    for index in range(first, first + left):
        yield Action(index, slot if index == first else slot + 1, slot + 1, reverse=False)
    yield from schedule(first + left, length - left, slot + 1, free - 1)
    yield from schedule(first, left, slot, free)


def _moves(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _parts(carry: PyTree) -> tuple[PyTree, PyTree]:
    """What of a carry has a derivative, and the rest: counters, keys."""
    return parameter_selection.split(carry, jax.tree.map(_moves, carry))


def _set(buffer: PyTree, slot: Any, carry: PyTree) -> PyTree:
    return jax.tree.map(lambda slots, leaf: jax.lax.dynamic_update_index_in_dim(slots, leaf, slot, 0), buffer, carry)
