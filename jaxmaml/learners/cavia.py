"""CAVIA: fast context adaptation."""

from typing import Unpack

import optax

from jaxmaml import starts
from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.parameter_selection import Leaves, Named
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def cavia(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    context: Leaves,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn parameters that all tasks share, and adapt only a context vector, which starts from zero.

    `params` has context leaves `phi` beside the shared ones `theta`. On each task `phi` starts from zero and the
    inner steps update it; the outer loop learns `theta`, with the derivative through these steps. The initial value
    of `phi` is not learned.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      context: The leaves of the context: a name in their path, a predicate of the path, or a tree of booleans.
        `jaxmaml.nn.MLP` and `jaxmaml.nn.Conv4` have one with `num_context`.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: In use, if `context` selects no leaf.
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP(num_context=4)
      >>> learner = jaxmaml.cavia(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(1.0), optax.adam(1e-3), num_inner_steps=1,
      ...     context="context")
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> task = jaxmaml.tasks.sinusoid()(jax.random.key(1))
      >>> learner.adapt(state, task.support)[0]["params"]["context"].shape
      (4,)

    References:
      Zintgraf et al., 2019, https://arxiv.org/abs/1810.03642
    """
    return make_learner(
        loss_fn,
        inner_optimizer,
        outer_optimizer,
        num_inner_steps,
        fixed(axes, adapted=Named(context, "context"), start=starts.zeros(Named(context, "context"))),
        "cavia",
    )
