"""Almost no inner loop."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.parameter_selection import Leaves, Named
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def anil(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    head: Leaves,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn features in the outer loop and adapt only the head to a task.

    `jaxmaml.maml` where `theta = (body, head)` and inner steps update the head alone. No inner gradient with
    respect to the body is computed; the outer loop learns both.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`; its pytrees have the head's leaves, and `None` for the others.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      head: The leaves of the head: a name in their path, such as `"Dense_0"` for `jaxmaml.nn.Conv4`, a
        predicate of the path, or a tree of booleans.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: In use, if `head` selects no leaf. TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.anil(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1,
      ...     head="Dense_2")
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> task = jaxmaml.tasks.sinusoid()(jax.random.key(1))
      >>> fast_params, _ = learner.adapt(state, task.support)
      >>> bool(jnp.all(fast_params["params"]["Dense_0"]["kernel"] == state.params["params"]["Dense_0"]["kernel"]))
      True

    References:
      Raghu et al., 2020, https://arxiv.org/abs/1909.09157
    """
    return make_learner(
        loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, fixed(axes, adapted=Named(head, "head")), "anil"
    )
