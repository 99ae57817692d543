"""Warp-MAML and T-nets."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.parameter_selection import Except, Leaves
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def warp_maml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    warp: Leaves,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn warp layers that precondition inner gradients and are not adapted.

    The model has warp layers between the adapted ones (in a T-net, linear maps). Backpropagation through them
    transforms the gradients of the adapted layers, so that meta-learned warp layers precondition the inner loop.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      warp: The leaves of the warp layers: a name in their path, a predicate of the path, or a tree of booleans.
        `jaxmaml.nn.MLP` and `jaxmaml.nn.Conv4` have them with `warp=True`.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: In use, if `warp` selects no leaf, or all.
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP(warp=True)
      >>> learner = jaxmaml.warp_maml(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1,
      ...     warp=lambda path: "warp" in path)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))

    References:
      Flennerhag et al., 2020, https://arxiv.org/abs/1909.00025 (Warp-MAML)
      Lee and Choi, 2018, https://arxiv.org/abs/1801.05558 (T-nets)
    """
    return make_learner(
        loss_fn,
        inner_optimizer,
        outer_optimizer,
        num_inner_steps,
        fixed(axes, adapted=Except(warp, "warp")),
        "warp_maml",
    )
