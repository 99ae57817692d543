"""Joint training, the baseline."""

from typing import Unpack

import optax

from jaxmaml import objectives
from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def joint_training(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Train one model on all tasks, and fine-tune it to each.

    The outer loop minimises `mean_i L(theta, query_i)` without adaptation; `adapt` takes inner steps from the result.
    With the head's name as `adapted`, this is linear probing. `adapt` from untrained parameters is learning from
    scratch.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: The optax transformation of the gradients in `adapt`.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.joint_training(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> tasks = jax.vmap(jaxmaml.tasks.sinusoid())(jax.random.split(jax.random.key(1), 4))
      >>> state, info = jax.jit(learner.update)(state, tasks)
      >>> info.support_loss.shape
      (4, 0)

    References:
      Finn et al., 2017, section 5 (its pretrained baseline), https://arxiv.org/abs/1703.03400
    """
    return make_learner(
        loss_fn,
        inner_optimizer,
        outer_optimizer,
        num_inner_steps,
        fixed(axes, objective=objectives.before_adaptation),
        "joint_training",
    )
