"""Execution of a batch of tasks: all at once, in chunks of bounded memory, or split over devices."""

import logging
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmaml import checks
from jaxmaml.execution.memory_estimate import tasks_that_fit
from jaxmaml.jax_internals import flag, set_flag, vary
from jaxmaml.types import PyTree

#: `(meta, step, tasks, weights) -> (out, grads)`: `out` has a leading task axis, `grads` are summed with the weights.
SumGradient = Callable[[PyTree, Any, PyTree, jax.Array], tuple[Any, PyTree]]

# The documented name, whatever the module's path is.
_logger = logging.getLogger("jaxmaml.task_axis")


def task_mesh(num_devices: int | None = None) -> Mesh:
    """Make a mesh of devices, to split the tasks of an outer step: `maml(..., mesh=task_mesh())`.

    On a CPU, each core that the process may use becomes one device with a single thread, because small matmuls gain
    more from tasks in parallel than from threads. For the smallest models, such as a sinusoid MLP, synchronisation
    costs
    more than the matmuls: use `task_mesh(1)`, one device with a single thread. JAX fixes its
    devices at its first computation, so call this function before; later it returns a mesh of the existing devices.

    Args:
      num_devices: The number of devices, which are created on a CPU; all by default.
    Returns:
      A mesh with one axis, `"tasks"`.
    Raises:
      ValueError, TypeError: If `num_devices` is not an integer of at least 1, or is larger than the number of devices.

    Example:
      >>> import jaxmaml
      >>> jaxmaml.task_mesh().axis_names
      ('tasks',)
    """
    wanted = None if num_devices is None else checks.positive_int("num_devices", num_devices)
    cores = _num_cores()
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = flag("jax_num_cpu_devices", -1)
    number = (wanted or cores) if chosen == -1 else chosen
    try:
        # Once JAX has started it refuses another number, and the settings below would only affect child processes.
        set_flag("jax_num_cpu_devices", number + 1)
        set_flag("jax_num_cpu_devices", number)
        if chosen == -1 and wanted and wanted < cores:
            # XLA's thread pool has a thread for each core, whatever the number of devices, and moves work between them.
            os.environ.setdefault("PJRT_NPROC", str(wanted))
        if "xla_cpu_multi_thread_eigen" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    except RuntimeError:  # JAX has started.
        if jax.default_backend() == "cpu" and jax.device_count() == 1 < cores:
            warnings.warn(
                "task_mesh() came after JAX's first computation, so the CPU stays one device of all cores; "
                "call it first.",
                stacklevel=2,
            )
    devices = jax.devices()
    if wanted and wanted > len(devices):
        raise ValueError(f"`num_devices` must be at most the number of devices, {len(devices)}; got {wanted}.")
    return jax.make_mesh(
        (wanted or len(devices),), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:wanted]
    )


def _num_cores() -> int:
    """The number of cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_tasks(gradient: SumGradient, chunk_size: int | str | None, mesh: Mesh | None) -> Callable[..., Any]:
    r"""Build `(meta, step, tasks) -> (out, grads)`, the mean over any number of tasks of what `gradient` sums.

    With `chunk_size`, a scan over chunks sums their gradients. Each chunk's intermediates are freed before the next
    chunk, so that memory does not grow with the number of tasks and the data stays in a CPU's cache. With `mesh`, each
    device does so for its share of the tasks, and the sums are added once, at the end. Incomplete chunks and shares are
    padded with tasks of weight zero. The result is the same up to the order of summation.
    """
    summed = _in_chunks(gradient, chunk_size, alone=mesh is None)
    if mesh is not None:
        summed = _sharded(summed, mesh)

    def mean(meta, step, tasks):
        num_tasks = _number(tasks)
        out, grads = summed(meta, step, tasks, jnp.ones(num_tasks))
        return out, jax.tree.map(lambda g, p: (g / num_tasks).astype(p.dtype), grads, meta)

    return mean


def _in_chunks(gradient: SumGradient, chunk_size: int | str | None, alone: bool) -> SumGradient:
    def pick(meta, step, tasks, weights) -> int:
        num_tasks = _number(tasks)
        if not isinstance(chunk_size, str):
            return min(chunk_size or num_tasks, num_tasks)
        one = jax.tree.map(lambda leaf: leaf[:1], (tasks, weights))
        fits, reason = tasks_that_fit(gradient, meta, step, *one)
        # The smallest number of chunks, of equal size.
        size = math.ceil(num_tasks / math.ceil(num_tasks / fits))
        # A hint only, because JAX fixed its devices at its first computation. Where all tasks fit the cache at once, a
        # mesh would gain nothing.
        if alone and size < num_tasks and jax.default_backend() == "cpu" and jax.device_count() == 1 < _num_cores():
            reason += " With mesh=jaxmaml.task_mesh() each core would have tasks of its own."
        _logger.info('chunk_size="auto" takes %d of %d tasks at a time: %s', size, num_tasks, reason)
        return size

    def chunked(meta, step, tasks, weights):
        num_tasks = _number(tasks)
        size = pick(meta, step, tasks, weights)
        if size == num_tasks:
            return gradient(meta, step, tasks, weights)
        filled = _filled((tasks, weights), size)

        def add_chunk(total, first):
            # Sliced in place: as inputs of the scan, all tasks would be copied into its loop.
            chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), filled)
            out, grads = gradient(meta, step, *chunk)
            return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads), out

        # Half-precision gradients are summed in float32: many small terms would vanish.
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), meta)
        total, out = jax.lax.scan(add_chunk, vary(zeros, like=(meta, tasks)), jnp.arange(0, _number(filled), size))
        joined = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * size, *leaf.shape[2:])[:num_tasks], out)
        return joined, total

    return chunked


def _sharded(gradient: SumGradient, mesh: Mesh) -> SumGradient:
    """Split the tasks over `mesh`; each device computes `gradient` of its share."""
    mesh = Mesh(mesh.devices, mesh.axis_names)  # Auto axes: the sharding is given here, and not by the types of arrays.
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharded(meta, step, tasks, weights):
        num_tasks = _number(tasks)

        def share(meta, step, tasks, weights):
            out, grads = gradient(meta, step, tasks, weights)
            return out, jax.tree.map(lambda g: g[None], grads)

        filled = _filled((tasks, weights), mesh.size)
        if num_tasks % mesh.size:
            # Replicated before it is split: a padded array that is already split would be sent around a dozen times.
            filled = jax.lax.with_sharding_constraint(filled, replicated)
        # Each device returns its own gradient, and they are summed outside. Within shard_map, with its check of varying
        # values, the derivative with respect to replicated parameters would be summed over the devices inside the inner
        # loop, and mix tasks.
        over_tasks = PartitionSpec(mesh.axis_names)
        out, shares = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), over_tasks, over_tasks),
            out_specs=over_tasks,
            check_vma=False,
        )(meta, step, *filled)
        grads = jax.tree.map(lambda g: jnp.sum(g, axis=0), shares)
        out = jax.tree.map(lambda leaf: leaf[:num_tasks], out)
        return out, jax.lax.with_sharding_constraint(grads, replicated)

    return sharded


def map_tasks(
    function: Callable[[PyTree, PyTree], Any], shared: PyTree, tasks: PyTree, chunk_size: int | None, mesh: Mesh | None
) -> Any:
    """`function(shared, task)` of each task, stacked; each device takes `chunk_size` (`None` for all) at once."""
    num_tasks = _number(tasks)

    def of_share(shared, tasks):
        return jax.lax.map(lambda task: function(shared, task), tasks, batch_size=chunk_size or _number(tasks))

    if mesh is None:
        return of_share(shared, tasks)
    mesh = Mesh(mesh.devices, mesh.axis_names)
    filled, _ = _filled((tasks, jnp.ones(num_tasks)), mesh.size)
    over_tasks = PartitionSpec(mesh.axis_names)
    out = jax.shard_map(
        of_share, mesh=mesh, in_specs=(PartitionSpec(), over_tasks), out_specs=over_tasks, check_vma=False
    )(shared, filled)
    # On every device, so that each of several processes can read all of it.
    out = jax.lax.with_sharding_constraint(out, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(lambda leaf: leaf[:num_tasks], out)


def _filled(tasks_and_weights: tuple[PyTree, jax.Array], multiple: int) -> tuple[PyTree, jax.Array]:
    """Tasks and weights, padded to a multiple by copies of the first task with weight zero."""
    tasks, weights = tasks_and_weights
    missing = -weights.shape[0] % multiple
    if not missing:
        return tasks, weights
    first = jnp.zeros(missing, int)
    tasks = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[first]]), tasks)
    return tasks, jnp.append(weights, jnp.zeros(missing, weights.dtype))


def _number(tasks: PyTree) -> int:
    return jax.tree.leaves(tasks)[0].shape[0]
