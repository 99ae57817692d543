"""MAML++."""

from typing import Unpack

import optax

from jaxmaml import checks, objectives
from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.parameter_selection import Leaves, Named
from jaxmaml.rules import learned_rates
from jaxmaml.types import LossFn, MetaLearner


def maml_plus_plus(
    loss_fn: LossFn,
    inner_step_size: float,
    outer_step_size: float,
    *,
    num_inner_steps: int,
    num_outer_steps: int,
    normalisation: Leaves,
    multi_step_steps: int | None = None,
    transform: optax.GradientTransformation | None = None,
    clip: float | None = None,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation by MAML with the five changes that make its training stable.

    * Multi-step loss: a weighted sum of the query losses after every inner step, with equal weights at first, and with
      the last loss alone after `multi_step_steps` outer steps (`objectives.annealed`).
    * Derivative-order annealing: first-order gradients for `first_order_steps`, then exact ones; both branches are
      compiled up front.
    * A learned step size for each tensor and inner step (`rules.learned_rates`).
    * Scales and shifts of normalisation for each inner step, which are meta-learned and not adapted.
    * Adam as the outer optimizer, whose step size falls along a cosine to a hundredth over `num_outer_steps`.

    Each is also available alone, as an axis of `jaxmaml.maml`.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_step_size: The initial value of the learned step sizes; 0.1 in the released code.
      outer_step_size: Adam's initial step size; 1e-3 in the paper.
      num_inner_steps: The number of inner steps in training; 5 in the paper.
      num_outer_steps: The number of outer steps of the whole training.
      normalisation: The leaves of the normalisation layers, such as `lambda path: "BatchNorm" in path`; `None` for a
        model without such layers. `init` copies each for every inner step. The model should normalise by the statistics
        of its current batch, as `jaxmaml.nn.Conv4` does, which differ from step to step.
      multi_step_steps: A tenth of `num_outer_steps` by default, as in the paper for Omniglot.
      transform: A transformation of the inner gradient, such as `jaxmaml.clip_by_global_norm(10.0)`.
      clip: The largest absolute value of an entry of the meta-gradient; 10 in the released code for mini-ImageNet.
      **axes: The other axes of the family: see `jaxmaml.Axes`. `first_order_steps` is half of `num_outer_steps` by
        default, as in the paper.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: If a number is out of range. TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.Conv4.omniglot(num_ways=5, features=8, use_scale=True)
      >>> learner = jaxmaml.maml_plus_plus(
      ...     jaxmaml.cross_entropy(model.apply), 0.1, 1e-3, num_inner_steps=5, num_outer_steps=50_000,
      ...     normalisation=lambda path: "BatchNorm" in path)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((5, 28, 28, 1))))
      >>> state.params["params"]["BatchNorm_0"]["scale"].shape
      (5, 8)

    References:
      Antoniou et al., 2019, https://arxiv.org/abs/1810.09502
    """
    checks.positive("outer_step_size", outer_step_size)
    checks.positive_int("num_outer_steps", num_outer_steps)
    checks.positive_int("num_inner_steps", num_inner_steps)
    multi_step_steps = num_outer_steps // 10 if multi_step_steps is None else multi_step_steps
    checks.positive_int("multi_step_steps", multi_step_steps, at_least=0)
    outer = optax.adam(optax.cosine_decay_schedule(outer_step_size, num_outer_steps, alpha=0.01))
    if clip is not None:
        checks.positive("clip", clip)
        outer = optax.chain(optax.clip(clip), outer)
    weights = objectives.annealed(num_inner_steps, max(1, multi_step_steps))
    half: Axes = {"first_order_steps": num_outer_steps // 2}
    return make_learner(
        loss_fn,
        learned_rates(inner_step_size, per="tensor", num_steps=num_inner_steps, transform=transform),
        outer,
        num_inner_steps,
        fixed(
            {**half, **axes},
            per_step=None if normalisation is None else Named(normalisation, "normalisation"),
            objective=objectives.multi_step(weights) if multi_step_steps else objectives.last_step,
        ),
        "maml_plus_plus",
    )
