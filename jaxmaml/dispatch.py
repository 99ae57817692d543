"""One dispatch: many outer steps in one compiled loop, with their tasks drawn inside it."""

import functools
import math

import chex
import jax
import jax.numpy as jnp

from jaxmaml.sampling import Sampler
from jaxmaml.types import MetaInfo, MetaLearner, MetaState, Task

# Small tasks are drawn for several outer steps at once, since a random draw costs a microsecond or more however few
# its numbers: 25 sinusoid tasks of one inner step take 18 of 250 us less for it. Large ones would leave the cache.
_STEPS_AHEAD = 16
_BYTES_AHEAD = 1 << 17


def draw(sample_task: Sampler, key: chex.PRNGKey, num_tasks: int, step) -> Task:
    """The tasks of outer step `step`, whatever was drawn before it."""
    return jax.vmap(sample_task)(jax.random.split(jax.random.fold_in(key, step), num_tasks))


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
    """Take `count <= capacity` outer steps, or as many as are finite.

    The count is no constant, so that any number of them is compiled and rounds alike. Blocks of steps whose tasks are
    drawn at once begin at multiples of their length, so that a step rounds alike wherever a dispatch begins.

    Returns:
      The state after the last step that was finite, and for `capacity` steps, of which the first `count` were taken,
      metrics and whether they and all before were finite.
    """
    draw_step = functools.partial(draw, sample_task, key, num_tasks)
    begin, end = state.step, state.step + count
    ahead = _steps_ahead(jax.eval_shape(draw_step, begin), capacity)

    @jax.jit  # Traced once, for its shapes and for the loop.
    def take(state: MetaState, so_far: jax.Array, tasks: Task):
        new_state, info = learner.update(state, tasks)
        means = jax.tree.map(lambda x: jnp.mean(x, 0), info._replace(grad_norm=info.grad_norm[None]))
        # A step that is not finite is not taken, nor any after it, so that the state it started from survives.
        checked = jax.tree.leaves((means.query_loss, means.grad_norm, new_state.params, new_state.rule_params))
        is_finite = so_far & jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in checked]))
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state), (means, is_finite)

    def take_block(index, carry):
        first = index * ahead
        tasks = jax.vmap(draw_step)(first + jnp.arange(ahead))

        def take_and_record(step, carry):
            state, so_far, history = carry
            state, now = take(state, so_far, jax.tree.map(lambda leaf: leaf[step - first], tasks))
            return state, now[1], jax.tree.map(lambda h, n: h.at[step - begin].set(n), history, now)

        return jax.lax.fori_loop(jnp.maximum(begin, first), jnp.minimum(end, first + ahead), take_and_record, carry)

    _, shapes = jax.eval_shape(lambda step: take(state, True, draw_step(step)), begin)
    history = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    carry = state, jnp.array(True), history
    state, _, history = jax.lax.fori_loop(begin // ahead, (end + ahead - 1) // ahead, take_block, carry)
    return state, history


def _steps_ahead(tasks: Task, capacity: int) -> int:
    """The most that divide a dispatch, so that none is drawn in vain, and whose tasks are small together."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tasks))
    fit = min(_STEPS_AHEAD, _BYTES_AHEAD // max(1, size))
    return max([1, *(n for n in range(1, fit + 1) if capacity % n == 0)])
