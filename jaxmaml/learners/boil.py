"""Body only update in inner loop."""

from typing import Unpack

import optax

from jaxmaml import parameter_selection
from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.parameter_selection import Leaves
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def boil(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    head: Leaves,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn the head in the outer loop and adapt only the features to a task.

    `jaxmaml.maml` where `theta = (body, head)` and inner steps update the body alone.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`; its pytrees have the body's leaves, and `None` for the others.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1, and 1 in the paper.
      head: The leaves of the head, which inner steps do not update: as in `jaxmaml.anil`.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: In use, if `head` selects no leaf, or all. TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.boil(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1,
      ...     head="Dense_2")
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))

    References:
      Oh et al., 2021, https://arxiv.org/abs/2008.08882
    """
    return make_learner(
        loss_fn,
        inner_optimizer,
        outer_optimizer,
        num_inner_steps,
        fixed(axes, adapted=parameter_selection.Except(head, "head")),
        "boil",
    )
