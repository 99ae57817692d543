"""Everything that execution wraps round the mathematics of a learner, in one place."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxmaml.execution.query_chunks import mean_over_chunks
from jaxmaml.execution.remat import keeps_all, remat_scan
from jaxmaml.execution.rewriting.cpu_implementations import with_cpu_implementations
from jaxmaml.execution.rewriting.exact_derivatives import with_exact_derivatives
from jaxmaml.execution.task_axis import map_tasks, over_tasks
from jaxmaml.options import Options
from jaxmaml.types import StepLoop


class Executor:
    """The execution options of a learner, as functions that wrap functions.

    `core.learner` applies them from outside. The rest of `core` knows of them only as the `StepLoop` that it is given.
    """

    def __init__(self, options: Options):
        self._options = options
        self.step_loop = StepLoop(
            run=functools.partial(remat_scan, remat=options.remat),
            keeps_all=functools.partial(keeps_all, remat=options.remat),
        )

    def exact(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A user's function, or one that calls it, with derivatives that stay correct under `vmap` and `jit`."""
        return with_exact_derivatives(function, self._options.rewrite)

    def loss(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        """`(params, batch) -> (loss, aux)` in the chosen matmul precision; its derivatives inherit it."""
        precision = self._options.matmul_precision

        def in_precision(params, batch):
            with jax.default_matmul_precision(precision):
                return loss_fn(params, batch)

        return self.exact(loss_fn if precision is None else in_precision)

    def query_loss(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        """The query loss as the mean over chunks of the query set."""
        return mean_over_chunks(loss_fn, self._options.query_chunk_size)

    def inner_loop(self, inner_loop: Callable[..., Any]) -> Callable[..., Any]:
        """The inner loop with exact derivatives, including those of its rule and its start."""

        def exact_inner_loop(meta, support, num_inner_steps, key=None, observe=None, then=None):
            data, number = (None, 0) if then is None else then

            def adapt(meta, support, key, data):
                then = None if data is None else (data, number)
                return inner_loop(meta, support, num_inner_steps, key, observe, then)

            return self.exact(adapt)(meta, support, key, data)

        return exact_inner_loop

    def map_tasks(self, function: Callable[..., Any], meta, tasks: tuple[Any, Any], step: Any) -> Any:
        """`function(meta, task, key, step)` of each task, stacked."""
        size = self._options.chunk_size
        return map_tasks(
            lambda shared, each: function(shared[0], *each, shared[1]),
            (meta, step),
            tasks,
            None if isinstance(size, str) else size,
            self._options.mesh,
        )

    def mean_over_tasks(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """`(meta, step, tasks) -> (out, grads)`, averaged over tasks in chunks and over devices."""
        options = self._options
        gradient = with_cpu_implementations(gradient, options.mesh is not None, options.rewrite)
        return over_tasks(gradient, options.chunk_size, options.mesh)
