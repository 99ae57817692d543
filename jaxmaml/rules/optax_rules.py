"""Optax transformations as inner rules."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.types import InnerRule, PyTree

# Some rules change their behaviour after the first step: RAdam, for instance, and DoG.
_TRIED_STEPS = 3


def as_inner_rule(inner_optimizer: optax.GradientTransformation | InnerRule) -> InnerRule:
    """Lift an optax transformation to an `InnerRule` without meta-learned parameters."""
    if isinstance(inner_optimizer, InnerRule):
        return inner_optimizer
    transform = optax.with_extra_args_support(inner_optimizer)

    def update(grads, rule_state, params, rule_params, step, **extra) -> tuple[PyTree, Any]:
        del rule_params, step  # An optax transformation counts its own steps.
        return transform.update(grads, rule_state, params, **extra)

    return InnerRule(
        init_params=lambda params: (),
        init=lambda rule_params, params: transform.init(params),
        update=update,
    )


def transform_rule(transform: optax.GradientTransformation | None) -> InnerRule:
    """A rule's argument `transform`, which its gradient passes first, as an inner rule; `None` is the identity."""
    if transform is None:
        return as_inner_rule(optax.identity())
    checks.optimizer("transform", transform)
    return as_inner_rule(transform)


def check_usable(
    name: str, transform: optax.GradientTransformation, params: PyTree, given: Sequence[str], differentiated: bool
) -> None:
    """Raise if a transformation needs more arguments than it gets here, or another evaluation of the loss.

    Args:
      name: The name of the caller's argument, for error messages.
      transform: The transformation, which is traced on shapes only.
      params: The parameters whose gradients it would transform.
      given: The names of its arguments beside gradients, state and parameters: `"value"`, `"grad"`, `"value_fn"`,
        `"kl_fn"`.
      differentiated: Whether its update is differentiated in reverse mode.
    Raises:
      TypeError: If it cannot be initialised, updated or, with `differentiated`, differentiated.
    """
    update = optax.with_extra_args_support(transform).update

    def tried(params):
        zero = jnp.zeros(())
        extra = {"value": zero, "grad": params, "value_fn": lambda p: zero, "kl_fn": lambda p: zero}
        state = transform.init(params)

        def updates(grads):
            return update(grads, state, params, **{key: extra[key] for key in given})[0]

        return jax.vjp(updates, params)[1](params) if differentiated else updates(params)

    try:
        jax.eval_shape(tried, params)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TypeError(
            f"`{name}` cannot be used here: it is called with gradients, its state, the parameters and "
            f"{', '.join(given)}{', and differentiated in reverse' if differentiated else ''}, and fails ({why}). "
            "Line searches and L-BFGS evaluate the loss again, SAM takes gradients at two points and lookahead keeps "
            "two sets of parameters: such transformations do not fit."
        ) from error


def check_differentiable_at_zero(rule: InnerRule) -> None:
    """Raise or warn if the derivative of a rule's updates is NaN, at a zero gradient or at any gradient.

    Zero entries of an inner gradient are common (an inactive ReLU), and `sqrt` or a norm at zero turns them into NaN
    meta-gradients, for instance in Adam with `eps_root=0`. The rule is evaluated on a two-parameter problem for a few
    steps, so that its behaviour is checked and not its name.

    Raises:
      ValueError: If the derivative is NaN at a gradient with one zero entry and one that is not zero, or at a gradient
        without zero entries.
    """

    def moved(params, grads):
        rule_params = rule.init_params(params)
        moving, state = params, rule.init(rule_params, params)
        for step in range(_TRIED_STEPS):
            extra = {"value": jnp.float32(1.0), "grad": grads, "value_fn": lambda p: jnp.sum(p["w"])}
            updates, state = rule.update(grads, state, moving, rule_params, jnp.int32(step), **extra)
            moving = optax.apply_updates(moving, updates)
        return moving

    def is_nan(gradient):
        params, grads = ({"w": jnp.asarray(leaf, jnp.float32)} for leaf in ([1.0, 1.0], gradient))
        derivatives = jax.jacrev(moved, argnums=(0, 1))(params, grads)
        return any(bool(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(derivatives))

    with jax.ensure_compile_time_eval(), jax.debug_nans(False):
        try:
            anywhere, one_zero, all_zero = map(is_nan, ([0.5, 1.0], [0.0, 1.0], [0.0, 0.0]))
        except Exception:
            return  # The rule accepts only the user's structure of parameters (a mask, labels): it cannot be checked.
    if anywhere:
        raise ValueError(
            f"`inner_optimizer` has a NaN derivative within its first {_TRIED_STEPS} steps, whatever the gradient (as "
            "optax.radam and optax.contrib.dog have), so every meta-gradient through it would be NaN. Take another, or "
            'derivative="first_order" if its update is finite.'
        )
    if one_zero:
        raise ValueError(
            "`inner_optimizer` has a NaN derivative where an entry of the inner gradient is zero, so almost every "
            "meta-gradient through it would be NaN. For Adam-like rules pass `eps_root` > 0, as in "
            'optax.adam(1e-3, eps_root=1e-8), or use derivative="first_order".'
        )
    if all_zero:
        warnings.warn(
            "`inner_optimizer` has a NaN derivative where the whole inner gradient is zero (the norm in "
            "optax.clip_by_global_norm, for instance). A task at an exact stationary point would make the "
            "meta-gradient NaN; jaxmaml.clip_by_global_norm does not.",
            stacklevel=3,
        )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    r"""Clip a gradient by its global norm, differentiably everywhere.

    `g -> g * min(1, max_norm / ||g||)`, like `optax.clip_by_global_norm`, whose derivative is NaN at
    `g = 0`; here it is the identity there.

    Args:
      max_norm: The largest norm that is left unchanged; > 0.
    Returns:
      An `optax.GradientTransformation`.
    Raises:
      ValueError: If `max_norm` <= 0.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> clip = jaxmaml.clip_by_global_norm(1.0)
      >>> clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))[0].round(3).tolist()
      [0.6000000238418579, 0.800000011920929]
      >>> jax.jacobian(lambda g: clip.update(g, clip.init(g))[0])(jnp.zeros(2)).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    References:
      Pascanu et al., 2012, https://arxiv.org/abs/1211.5063
    """
    checks.positive("max_norm", max_norm)

    def update(updates, state, params=None):
        del params
        squares = sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(updates))
        too_long = squares > max_norm**2
        # The inner `where` keeps sqrt away from 0, where its derivative is infinite.
        scale = jnp.where(too_long, max_norm / jnp.sqrt(jnp.where(too_long, squares, 1.0)), 1.0)
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
