"""Bayesian MAML."""

from typing import Unpack

import optax

from jaxmaml import losses, objectives
from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.rules import svgd
from jaxmaml.types import LossFn, MetaLearner


def bayesian_maml(
    loss_fn: LossFn,
    inner_step_size: float,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    num_leader_steps: int = 1,
    repulsion: float = 1.0,
    transform: optax.GradientTransformation | None = None,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an ensemble that adapts to a task's posterior by Stein variational gradient descent.

    `params` are `M` particles, along the leading axis of every leaf. On a task they take `num_inner_steps` steps of
    `jaxmaml.rules.svgd` on the support loss. The outer loop minimises the chaser loss: the squared distance to a
    leader, which is the particles after `num_leader_steps` further steps on support and query together. The models of
    the adapted particles are samples of the predictive distribution. `jaxmaml.evaluate` and `Validation` evaluate all
    particles together: pass `jaxmaml.ensemble(loss_fn)` to them.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)` of one particle; the inner loop
        uses the mean over particles, which is also reported.
      inner_step_size: The step size of SVGD; > 0.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      num_leader_steps: The number of further steps of the leader; >= 1.
      repulsion: The temperature of the posterior; see `jaxmaml.rules.svgd`.
      transform: A transformation of each particle's gradient, such as `jaxmaml.clip_by_global_norm(10.0)`.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: If a number is out of range; in use: if leaves have different leading axes.
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.bayesian_maml(
      ...     jaxmaml.mean_squared_error(model.apply), 0.01, optax.adam(1e-3), num_inner_steps=1)
      >>> keys = jax.random.split(jax.random.key(0), 10)
      >>> state = learner.init(jax.vmap(lambda key: model.init(key, jnp.ones((1, 1))))(keys))
      >>> task = jaxmaml.tasks.sinusoid()(jax.random.key(1))
      >>> particles, _ = learner.adapt(state, task.support)
      >>> jax.vmap(model.apply, in_axes=(0, None))(particles, task.query.inputs).shape
      (10, 10, 1)

    References:
      Kim et al., 2018, https://arxiv.org/abs/1806.03836
    """
    return make_learner(
        losses.ensemble(loss_fn),
        svgd(inner_step_size, repulsion, transform=transform),
        outer_optimizer,
        num_inner_steps,
        fixed(axes, objective=objectives.chaser(num_leader_steps)),
        "bayesian_maml",
    )
