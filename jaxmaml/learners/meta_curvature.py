"""Meta-curvature."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes
from jaxmaml.rules import kronecker
from jaxmaml.types import LossFn, MetaLearner


def meta_curvature(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation and matrices that multiply inner gradients.

    `jaxmaml.maml` where the gradient of each tensor is multiplied along its axes by learned matrices, initialised to
    identities, and then passed to the inner optimizer: `jaxmaml.rules.kronecker`.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: The optax transformation of the multiplied gradients.
      outer_optimizer: The optax transformation of the meta-gradient with respect to `(params, matrices)`.
      num_inner_steps: The number of inner steps in training; >= 1.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.meta_curvature(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> tasks = jax.vmap(jaxmaml.tasks.sinusoid())(jax.random.split(jax.random.key(1), 4))
      >>> state, info = jax.jit(learner.update)(state, tasks)

    References:
      Park and Oliva, 2019, https://arxiv.org/abs/1902.03356
    """
    rule = kronecker(inner_optimizer)
    return make_learner(loss_fn, rule, outer_optimizer, num_inner_steps, axes, "meta_curvature")
