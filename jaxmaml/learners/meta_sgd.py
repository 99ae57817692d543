"""Meta-SGD."""

from collections.abc import Callable
from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes
from jaxmaml.rules import learned_rates
from jaxmaml.types import LossFn, MetaLearner


def meta_sgd(
    loss_fn: LossFn,
    initial_rate: float | tuple[float, float],
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    per: str | Callable[[str], str] = "parameter",
    bounds: tuple[float, float] | None = None,
    transform: optax.GradientTransformation | None = None,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation and the step size of every parameter.

    `jaxmaml.maml` with the inner update `theta <- theta - alpha * grad`; `alpha` has the shape of `theta` and is
    meta-learned too.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      initial_rate: The initial rates: a number, or `(low, high)` for uniform draws, (0.005, 0.1) in the paper.
      outer_optimizer: The optax transformation of the meta-gradient with respect to `(params, rates)`.
      num_inner_steps: The number of inner steps in training; >= 1.
      per: Whether each `"parameter"` or each `"tensor"` has its own rate, or all share a `"scalar"`, or a function that
        names the group of a leaf by its path; see `jaxmaml.rules.learned_rates`, which can also learn rates for each
        step.
      bounds: `(low, high)` of the rates; `None`, the default, leaves them free, as in the paper.
      transform: A transformation of the inner gradient, such as `jaxmaml.clip_by_global_norm(10.0)`.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.meta_sgd(
      ...     jaxmaml.mean_squared_error(model.apply), (0.005, 0.1), optax.adam(1e-3), num_inner_steps=1)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> tasks = jax.vmap(jaxmaml.tasks.sinusoid())(jax.random.split(jax.random.key(1), 4))
      >>> state, info = jax.jit(learner.update)(state, tasks)

    References:
      Li et al., 2017, https://arxiv.org/abs/1707.09835
    """
    rule = learned_rates(initial_rate, per=per, bounds=bounds, seed=axes.get("seed", 0), transform=transform)
    return make_learner(loss_fn, rule, outer_optimizer, num_inner_steps, axes, "meta_sgd")
