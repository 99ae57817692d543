"""Everything that execution wraps round the mathematics of a learner, in one place."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxmaml.execution.query_chunks import mean_over_chunks
from jaxmaml.execution.remat import keeps_all, remat_scan
from jaxmaml.execution.rewriting.exact_derivatives import with_exact_derivatives
from jaxmaml.execution.rewriting.matmul_order import reordered
from jaxmaml.execution.task_axis import over_tasks
from jaxmaml.options import Options
from jaxmaml.types import StepLoop


class Executor:
    """The execution options of a learner as functions of functions; each returns the same function up to rounding.

    `core.learner` applies them from outside, so that no other module of `core` knows of them.
    """

    def __init__(self, options: Options):
        self._options = options
        self.step_loop = StepLoop(
            run=functools.partial(remat_scan, remat=options.remat),
            keeps_all=functools.partial(keeps_all, remat=options.remat),
        )

    def exact(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the user's, or one that calls them, with derivatives that `vmap` and compilation keep."""
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
        """The inner loop; its rule, its start and the custom rules inside the model are differentiated too."""

        def exact_inner_loop(meta, support, num_inner_steps, key=None, observe=None, then=None):
            data, number = (None, 0) if then is None else then

            def adapt(meta, support, key, data):
                then = None if data is None else (data, number)
                return inner_loop(meta, support, num_inner_steps, key, observe, then)

            return self.exact(adapt)(meta, support, key, data)

        return exact_inner_loop

    def mean_over_tasks(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """`(meta, step, tasks) -> (out, grads)`, averaged over tasks in chunks and over devices."""
        options = self._options
        gradient = reordered(gradient, options.mesh is not None, options.rewrite)
        return over_tasks(gradient, options.chunk_size, options.mesh)
