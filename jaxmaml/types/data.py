"""Batches, tasks, and what learners return."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

#: A pytree of arrays.
PyTree = Any

#: `loss_fn(params, batch) -> loss` or `(loss, aux)`; `loss` is a floating-point scalar.
LossFn = Callable[[PyTree, Any], Any]


class Batch(NamedTuple):
    """Labelled examples: the batch type that the library's own task families produce.

    The core accepts any pytree as a batch; this one is a convenience.

    Attributes:
      inputs: Array `[num_examples, ...]`, or a pytree of them.
      targets: Array `[num_examples, ...]`; integer class labels or regression targets.
    """

    inputs: Any
    targets: jax.Array


class WeightedBatch(NamedTuple):
    r"""Labelled examples with weights, of which zeros mark padding: tasks of different sizes become of one shape.

    The library's losses take the weighted mean `sum_i w_i l_i / sum_i w_i` over the examples `i` with weights `w` and
    losses `l`, in which the contents of examples of weight zero have no effect, even if they are NaN or labels out of
    range. A loss of your own has to do so itself; `fit` and `evaluate` refuse one whose value padding changes, and also
    models that normalise by statistics of the batch.

    Attributes:
      inputs: Array `[num_examples, ...]`, or a pytree of them.
      targets: Array `[num_examples, ...]`; integer class labels or regression targets.
      weights: Floating-point array `[num_examples]`: 0 for padding, and any non-negative number otherwise, of which at
        least one is positive. Where they are traced, so that this cannot be checked, a batch of zeros has a loss of
        NaN.

    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> loss_fn = jaxmaml.mean_squared_error(lambda w, x: w * x)
      >>> x, y = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, 0.0])
      >>> float(loss_fn(2.0, jaxmaml.WeightedBatch(x, y, weights=jnp.array([1.0, 3.0, 0.0]))))
      1.0
    """

    inputs: Any
    targets: jax.Array
    weights: jax.Array


class Task(NamedTuple):
    """A task: a support batch to adapt on, and a query batch on which the adapted parameters are evaluated.

    With a leading axis on every leaf it is a batch of tasks.

    Attributes:
      support: Any pytree of arrays; the batch of `loss_fn` in the inner loop.
      query: Any pytree of arrays; the batch of `loss_fn` in the outer loop.

    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> x = jnp.ones((4, 10, 1))                      # 4 tasks, 10 examples each
      >>> tasks = jaxmaml.Task(support=(x, x), query=(x, x))
      >>> tasks.support[0].shape
      (4, 10, 1)

    References:
      Vinyals et al., 2016, https://arxiv.org/abs/1606.04080 (support and query sets)
    """

    support: Any
    query: Any


class MetaState(NamedTuple):
    """The state of meta-training: everything that an outer step changes.

    Attributes:
      step: Number of outer steps taken, int32 scalar.
      params: The initial parameters, a pytree of floating-point arrays.
      rule_params: The meta-learned parameters of the inner rule; `()` for an optax transformation.
      opt_state: The state of the outer optimizer.
    """

    step: jax.Array
    params: PyTree
    rule_params: PyTree
    opt_state: optax.OptState


class MetaInfo(NamedTuple):
    """Metrics of an outer step; losses are in the units of `loss_fn` (nats for cross-entropy).

    Attributes:
      query_loss: Query loss of each task after adaptation, `[num_tasks]`. Their mean is the meta-loss that the step
        minimises, unless the algorithm has another objective.
      support_loss: Support loss before each inner step, `[num_tasks, num_inner_steps]`.
      grad_norm: Euclidean norm of the meta-gradient, scalar.
      aux: `loss_fn`'s auxiliary output on the query, leaves `[num_tasks, ...]`; `()` without one.
      diagnostics: Quantities of one algorithm, leaves `[num_tasks, ...]`, such as the residual of an implicit solve;
        `()` for most algorithms.
    """

    query_loss: jax.Array
    support_loss: jax.Array
    grad_norm: jax.Array
    aux: Any
    diagnostics: Any = ()


class Outcome(NamedTuple):
    """Metrics of one task that an objective returns beside the scalar to differentiate. See `MetaInfo`."""

    query_loss: jax.Array
    support_loss: jax.Array
    aux: Any
    diagnostics: Any = ()


class AdaptTrace(NamedTuple):
    """What `adapt` records at each inner step.

    Attributes:
      support_loss: Support loss before each inner step, `[num_inner_steps]`.
      aux: `loss_fn`'s auxiliary output at each of these, leaves `[num_inner_steps, ...]`.
      observed: What `observe` returned after 0, 1, ... inner steps, leaves
        `[num_inner_steps + 1, ...]`; `()` without `observe`.
    """

    support_loss: jax.Array
    aux: Any
    observed: Any
