"""First-order MAML."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def fomaml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation by the query gradient at the adapted parameters, without second derivatives.

    `jaxmaml.maml` with the inner gradients taken as constants: for inner gradient descent the meta-gradient is
    `mean_i grad L(theta_i^K, query_i)`.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`; Adam needs no `eps_root` here.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: `K`, the number of inner steps in training; >= 1.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.fomaml(
      ...     lambda w, batch: jnp.mean((w - batch) ** 2), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=5)
      >>> state = learner.init(jnp.zeros(()))
      >>> state, info = learner.update(state, jaxmaml.Task(jnp.ones((4, 3)), jnp.ones((4, 3))))

    References:
      Finn et al., 2017, section 5.2, https://arxiv.org/abs/1703.03400
    """
    return make_learner(
        loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, fixed(axes, derivative="first_order"), "fomaml"
    )
