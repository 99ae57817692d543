"""The meta-loss of one task, which the outer loop minimises, and the choice of its gradient."""

import functools
from collections.abc import Callable
from typing import Any

from jaxmaml import keys, objectives, supports
from jaxmaml.core import meta_gradients
from jaxmaml.core.inner_loop import of_step
from jaxmaml.options import Evolution, Implicit, Options
from jaxmaml.types import Task

#: `(meta, task, key, step) -> (value, Outcome)`.
TaskLoss = Callable[..., Any]


class MetaLoss:
    """The outer objective of one task.

    Args:
      loss_fn: The loss on the support, `(params, batch) -> (loss, aux)`.
      query_loss_fn: The same for the query, which may take it in chunks.
      inner_loop_of: `options -> inner loop`.
      num_inner_steps: The number of inner steps in training.
      options: The learner's.
    """

    def __init__(self, loss_fn, query_loss_fn, inner_loop_of, num_inner_steps: int, options: Options):
        self._loss_fn = loss_fn
        self._query_loss_fn = query_loss_fn
        self._inner_loop_of = inner_loop_of
        self._num_inner_steps = num_inner_steps
        self._options = options
        self._queries, _ = supports.complete("queries", options.queries)

    def of_task(self, derivative: Any = None) -> TaskLoss:
        """`(meta, task, key, step) -> (value, Outcome)`; `derivative` is the options' by default."""
        objective = (self._options.objective or objectives.last_step)(self._adapted(derivative), self._query_loss)
        return lambda meta, task, key, step: objective(meta, self._planned(task, key), key, step)

    def gradient(self) -> meta_gradients.MetaGradient:
        """The meta-gradient that the options ask for, summed over tasks."""
        options = self._options
        if isinstance(options.derivative, Implicit):
            return meta_gradients.implicit(self._loss_fn, self._adapted(), self._query_loss, self._planned, options)
        if isinstance(options.derivative, Evolution):
            return meta_gradients.evolution(self.of_task(), options.derivative)
        gradient = meta_gradients.backpropagation(self.of_task())
        if not options.first_order_steps:
            return gradient
        first_order = meta_gradients.backpropagation(self.of_task("first_order"))
        return meta_gradients.after(options.first_order_steps, gradient, first_order)

    def _adapted(self, derivative: Any = None) -> Callable[..., Any]:
        options = self._options if derivative is None else self._options._replace(derivative=derivative)
        return functools.partial(self._inner_loop_of(options), num_inner_steps=self._num_inner_steps)

    def _planned(self, task: Task, key: Any) -> Task:
        """`task` with its queries planned, for `_query_loss`: once, and not at every evaluation."""
        own, steps = keys.of_task(key), self._num_inner_steps + 1
        if self._options.queries is None:
            return task  # As it is, because objectives such as the chaser's look at the query.
        return task._replace(query=supports.planned(self._queries, task.query, steps, own.query_plan, own.query))

    def _query_loss(self, params, query, num_steps: Any = None):
        num_steps = self._num_inner_steps if num_steps is None else num_steps
        params = of_step(params, num_steps - 1, self._options)
        if self._options.queries is not None:
            query = supports.batch_at(self._queries, query, num_steps, params)
        return self._query_loss_fn(params, query)
