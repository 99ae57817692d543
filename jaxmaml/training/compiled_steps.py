"""A dispatch: one compiled call that takes several outer steps and draws their tasks."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxmaml.keys import threefry
from jaxmaml.training.samplers import Sampler
from jaxmaml.types import MetaInfo, MetaLearner, MetaState, Task


def draw(sample_task: Sampler, key: chex.PRNGKey, num_tasks: int, step) -> Task:
    """The tasks of outer step `step`, whatever was drawn before it."""
    return jax.vmap(sample_task)(jax.random.split(jax.random.fold_in(threefry(key), step), num_tasks))


@functools.partial(jax.jit, static_argnums=(0, 4, 5), donate_argnums=1)
def take_steps(
    learner: MetaLearner,
    state: MetaState,
    sample_task: Sampler,
    key: chex.PRNGKey,
    capacity: int,
    num_tasks: int,
    count: int,
) -> tuple[MetaState, tuple[MetaInfo, jax.Array]]:
    """Take `count <= capacity` outer steps, or fewer if a step is not finite.

    The count is an argument of the compiled call and not a constant, so that every count uses the same program and is
    rounded in the same way.

    Returns:
      `(state, (metrics, is_finite))`: the last finite state, and arrays with a row for each step, of which the first
      `count` are valid. `is_finite[i]` says whether steps `0 ... i` were all finite.
    """
    return _loop(learner, state, functools.partial(draw, sample_task, key, num_tasks), capacity, count)


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=1)
def take_batches(
    learner: MetaLearner, state: MetaState, stacked: Task, capacity: int, count: int
) -> tuple[MetaState, tuple[MetaInfo, jax.Array]]:
    """As `take_steps`, on batches of tasks that are stacked along a leading axis, the first for `state.step`."""
    begin = state.step

    def batch_of(step):
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, step - begin, keepdims=False), stacked)

    return _loop(learner, state, batch_of, capacity, count)


def _loop(learner: MetaLearner, state: MetaState, draw_step: Callable[[Any], Task], capacity: int, count: int):
    begin = state.step
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw_step, begin))

    @jax.jit  # Traced once, although it is used for its shapes and in the loop.
    def take(state: MetaState, so_far: jax.Array):
        # In a branch, because XLA would otherwise recompute random numbers wherever they are used, which takes a
        # tenth of the time of a sinusoid's outer step.
        tasks = jax.lax.cond(so_far, draw_step, lambda step: nothing, state.step)
        new_state, info = learner.update(state, tasks)
        means = jax.tree.map(lambda x: jnp.mean(x, 0), info._replace(grad_norm=info.grad_norm[None]))
        # A step that is not finite is not taken, nor any after it, so that the state it started from survives.
        is_finite = so_far & _all_finite((means.query_loss, means.support_loss, means.grad_norm, new_state))
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state), (means, is_finite)

    def take_and_record(step, carry):
        state, so_far, history = carry
        state, now = take(state, so_far)
        return state, now[1], jax.tree.map(lambda h, n: h.at[step - begin].set(n), history, now)

    _, shapes = jax.eval_shape(lambda: take(state, True))
    # With a single row XLA specialises the program, which is then rounded differently.
    rows = max(2, capacity)
    history = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), shapes)
    carry = state, jnp.array(True), history
    state, _, history = jax.lax.fori_loop(begin, begin + count, take_and_record, carry)
    return state, history


def _all_finite(tree) -> jax.Array:
    """Whether every floating-point number in `tree` is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
