"""Implicit MAML."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, Implicit, fixed
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def imaml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    strength: float = Implicit().strength,
    max_solver_steps: int = Implicit().max_solver_steps,
    tolerance: float = Implicit().tolerance,
    damping: float = Implicit().damping,
    shift: float = Implicit().shift,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation by implicit differentiation of a proximal inner problem.

    Each task solves `phi = argmin L(phi, support) + strength/2 ||phi - theta||^2` by `num_inner_steps` of the
    inner optimizer; the meta-gradient is `(I + H / strength)^{-1} grad L(phi, query)`, with `H` the Hessian of the
    support loss, computed by conjugate gradients. Memory does not grow with the number of inner steps. The formula is
    exact at the minimum only: `info.diagnostics` has the gradient's norm where the inner loop stopped, and the residual
    of the linear system. If the residual is large, `update` warns.

    The released code differs from the paper: it solves `((1 + 1) I + H / (strength + 10)) u = v`, which is
    `damping=1.0, shift=10.0` here, after 16 plain gradient steps and one proximal one.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: As in `jaxmaml.maml`.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      strength: The weight `lambda` of the proximal term; > 0.
      max_solver_steps: The largest number of conjugate gradient steps; 5 in the paper.
      tolerance: The relative residual at which they stop.
      damping: See above; >= 0.
      shift: See above; >= 0.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: If a number is out of range, or the inner optimizer has parameters to learn.
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.imaml(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=20)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> tasks = jax.vmap(jaxmaml.tasks.sinusoid())(jax.random.split(jax.random.key(1), 4))
      >>> state, info = jax.jit(learner.update)(state, tasks)
      >>> info.diagnostics.residual.shape
      (4,)

    References:
      Rajeswaran et al., 2019, https://arxiv.org/abs/1909.04630
    """
    derivative = Implicit(strength, max_solver_steps, tolerance, damping, shift)
    return make_learner(
        loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, fixed(axes, derivative=derivative), "imaml"
    )
