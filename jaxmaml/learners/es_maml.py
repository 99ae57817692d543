"""ES-MAML."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, Evolution, fixed
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def es_maml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    std: float = Evolution().std,
    num_pairs: int = Evolution().num_pairs,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation from values of the meta-loss alone, by evolution strategies.

    `grad = 1/(2 std) E[(F(theta + std e) - F(theta - std e)) e]` with `F` the query loss after adaptation and
    `e ~ N(0, I)`, for losses whose outer derivative does not exist or is not useful. The meta-learned parameters of
    an inner rule are perturbed as well.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      std: The standard deviation of the perturbations; > 0. Far below 0.001, float32 differences are mostly rounding.
      num_pairs: The number of antithetic pairs of perturbations for each task. The standard error is proportional to
        `1 / sqrt(num_tasks * num_pairs)`, and grows with the number of parameters.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: If `std` <= 0 or `num_pairs` < 1.
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.es_maml(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> tasks = jax.vmap(jaxmaml.tasks.sinusoid())(jax.random.split(jax.random.key(1), 4))
      >>> state, info = jax.jit(learner.update)(state, tasks)

    References:
      Song et al., 2020, https://arxiv.org/abs/1910.01215
    """
    derivative = Evolution(std, num_pairs)
    return make_learner(
        loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, fixed(axes, derivative=derivative), "es_maml"
    )
