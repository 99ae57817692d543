"""How a batch of tasks is executed: all at once, or in chunks of bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.types import PyTree, Task

#: `(params, task) -> (loss, out)`.
TaskLoss = Callable[[PyTree, Task], tuple[jax.Array, Any]]


def value_and_mean_grad(task_loss: TaskLoss, chunk_size: int | None):
    r"""Build `(params, tasks) -> (out, grads)`, the gradient of the mean loss over a batch of tasks.

    `grads = 1/n sum_i grad loss(params, task_i)`; `out` has a leading task axis. With `chunk_size`,
    a scan over chunks adds up their gradients: each chunk's intermediates are gone before the next, so
    memory does not grow with the number of tasks and the work stays in a CPU's cache. The result is the
    same up to the order of summation.
    """

    def mean_loss(params, tasks):
        losses, out = jax.vmap(task_loss, in_axes=(None, 0))(params, tasks)
        return jnp.mean(losses), out

    gradient = jax.grad(mean_loss, has_aux=True)

    def whole(params, tasks):
        grads, out = gradient(params, tasks)
        return out, grads

    def chunked(params, tasks):
        num_tasks = checks.tasks(tasks)
        size = checks.chunking(chunk_size, num_tasks)
        if size == num_tasks:
            return whole(params, tasks)
        num_chunks = num_tasks // size
        chunks = jax.tree.map(lambda leaf: leaf.reshape(num_chunks, size, *leaf.shape[1:]), tasks)

        def add_chunk(total, chunk):
            out, grads = whole(params, chunk)
            return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads), out

        # Half-precision gradients are summed in float32: many small terms would vanish.
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        total, out = jax.lax.scan(add_chunk, zeros, chunks)
        grads = jax.tree.map(lambda t, p: (t / num_chunks).astype(p.dtype), total, params)
        return jax.tree.map(lambda leaf: leaf.reshape(num_tasks, *leaf.shape[2:]), out), grads

    return chunked
