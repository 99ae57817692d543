"""How a batch of tasks is executed: all at once, in chunks of bounded memory, or split over devices."""

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmaml import checks
from jaxmaml.types import PyTree, Task
from jaxmaml.working_set import chunk_that_fits

#: `(params, task) -> (loss, out)`.
TaskLoss = Callable[[PyTree, Task], tuple[jax.Array, Any]]

_logger = logging.getLogger(__name__)


def task_mesh() -> Mesh:
    """Make a mesh over all devices, to split the tasks of an outer step: `maml(..., mesh=task_mesh())`.

    On a CPU, a device is made of each core that the process may use, with one thread each: small matrix
    products gain more from tasks in parallel than from threads. JAX fixes its devices at its first
    computation, so call this before it; later, it returns a mesh of the devices that there are.

    Returns:
      A mesh of one axis, `"tasks"`.

    Example:
      >>> import jaxmaml
      >>> jaxmaml.task_mesh().axis_names
      ('tasks',)
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        if getattr(jax.config, "jax_num_cpu_devices", None) == -1:  # The user has not chosen.
            jax.config.update("jax_num_cpu_devices", cores)
        if "xla_cpu_multi_thread_eigen" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    except RuntimeError:  # JAX has started.
        if jax.default_backend() == "cpu" and jax.device_count() == 1 < cores:
            warnings.warn(
                "task_mesh() came after JAX's first computation, so the CPU stays one device; call it first.",
                stacklevel=2,
            )
    return jax.make_mesh((jax.device_count(),), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))


def value_and_mean_grad(task_loss: TaskLoss, chunk_size: int | str | None, mesh: Mesh | None):
    r"""Build `(params, tasks) -> (out, grads)`, the gradient of the mean loss over a batch of tasks.

    `grads = 1/n sum_i grad loss(params, task_i)`; `out` has a leading task axis. With `chunk_size`,
    a scan over chunks adds up their gradients: each chunk's intermediates are gone before the next, so
    memory does not grow with the number of tasks and the work stays in a CPU's cache. With `mesh`, each
    device does so for its share of the tasks, and they meet once, at the end. The result is the same up to
    the order of summation.
    """

    def mean_loss(params, tasks):
        losses, out = jax.vmap(task_loss, in_axes=(None, 0))(params, tasks)
        return jnp.mean(losses), out

    gradient = jax.grad(mean_loss, has_aux=True)

    def whole(params, tasks):
        grads, out = gradient(params, tasks)
        return out, grads

    def pick(params, tasks, num_tasks):
        if not isinstance(chunk_size, str):
            return checks.chunking("chunk_size", chunk_size, num_tasks, "tasks")
        one = jax.tree.map(lambda leaf: leaf[:1], tasks)
        size, reason = chunk_that_fits(whole, params, one, num_tasks=num_tasks)
        _logger.info('chunk_size="auto" takes %d of %d tasks at a time: %s', size, num_tasks, reason)
        return size

    def chunked(params, tasks):
        num_tasks = checks.tasks(tasks)
        size = pick(params, tasks, num_tasks)
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

    return chunked if mesh is None else _sharded(chunked, mesh)


def _sharded(mean_grad: Callable, mesh: Mesh) -> Callable:
    """Split the tasks over `mesh`, each device taking `mean_grad` of its share."""

    def sharded(params, tasks):
        checks.sharding(mesh, checks.tasks(tasks))

        def share(params, tasks):
            out, grads = mean_grad(params, tasks)
            return out, jax.tree.map(lambda g: g[None], grads)

        # Gradients leave as one a device and meet outside: within shard_map, and with its check of varying values,
        # the derivative by replicated parameters would be summed over the devices in the inner loop, and mix tasks.
        over_tasks = PartitionSpec(mesh.axis_names)
        out, shares = jax.shard_map(
            share, mesh=mesh, in_specs=(PartitionSpec(), over_tasks), out_specs=over_tasks, check_vma=False
        )(params, tasks)
        grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), shares)
        return out, jax.lax.with_sharding_constraint(grads, NamedSharding(mesh, PartitionSpec()))

    return sharded
