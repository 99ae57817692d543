"""The trust-region outer step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.types import PyTree


class TrustRegionState(NamedTuple):
    """What the last step was.

    Attributes:
      fraction: The share of the largest step of the quadratic model that was taken; 0 if none was accepted.
      kl: The divergence at the new parameters, in nats.
    """

    fraction: jax.Array
    kl: jax.Array


def trust_region(
    max_kl: float = 0.01,
    *,
    num_cg_steps: int = 10,
    damping: float = 1e-5,
    shrink: float = 0.8,
    max_trials: int = 15,
) -> optax.GradientTransformationExtraArgs:
    r"""Build TRPO's step as an outer optimizer: as far along the natural gradient as the divergence allows.

    With `g` the meta-gradient and `H` the Hessian of the mean divergence `kl_fn` at the parameters, conjugate gradients
    solve `(H + damping I) s = g`, and the step is `-shrink^j sqrt(2 max_kl / (s^T (H + damping I) s)) s` with the
    smallest `j < max_trials` for which `kl_fn <= max_kl` and `value_fn` is below its value before the step; without
    one, nothing changes. `H v` is computed in reverse over reverse mode, because the divergence is that of adapted
    parameters, whose derivatives have rules of their own.

    The learner passes `value_fn` and `kl_fn`, of the same tasks with the same rollouts: use it in
    `jaxmaml.rl.on_policy`, where these are recorded.

    Args:
      max_kl: The largest mean divergence of a step, in nats; 0.01 in the MAML paper. > 0.
      num_cg_steps: Conjugate gradient steps at most; >= 1.
      damping: Added to the eigenvalues of `H`; >= 0.
      shrink: The factor between trials; between 0 and 1.
      max_trials: Trials at most; >= 1.
    Returns:
      An optax transformation whose `update` needs `params`, `value_fn` and `kl_fn`, both `params -> scalar`.
    Raises:
      TypeError: In use: if `params`, `value_fn` or `kl_fn` is missing.
      ValueError: If an argument is out of its range.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> optimizer = jaxmaml.rl.trust_region(max_kl=0.5)
      >>> params, value_fn = jnp.zeros(2), lambda p: p @ jnp.array([3.0, 4.0])
      >>> updates, state = optimizer.update(
      ...     jax.grad(value_fn)(params), optimizer.init(params), params,
      ...     value_fn=value_fn, kl_fn=lambda p: p @ p / 2)
      >>> updates.round(3).tolist()                                     # of length 1: 1/2 |step|^2 = max_kl
      [-0.6000000238418579, -0.800000011920929]

    References:
      Schulman et al., 2015, https://arxiv.org/abs/1502.05477
    """
    checks.positive("max_kl", max_kl)
    checks.positive_int("num_cg_steps", num_cg_steps)
    checks.number("damping", damping, at_least=0.0)
    checks.positive("shrink", shrink)
    checks.positive_int("max_trials", max_trials)
    if shrink >= 1:
        raise ValueError(f"`shrink` must be < 1, got {shrink}.")

    def init(params: PyTree) -> TrustRegionState:
        zero = jnp.zeros((), jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
        return TrustRegionState(zero, zero)

    def update(updates: Any, state: Any, params: Any = None, *, value_fn: Any = None, kl_fn: Any = None, **unused: Any):
        for name, given in (("params", params), ("value_fn", value_fn), ("kl_fn", kl_fn)):
            if given is None:
                raise TypeError(
                    f"`trust_region` needs `{name}`, got None. A learner passes `kl_fn` if the auxiliary output of its "
                    '`loss_fn` is a mapping with a scalar "kl", as that of the losses in jaxmaml.rl is.'
                )
        dtype = state.fraction.dtype
        wide = jax.tree.map(lambda g: g.astype(dtype), updates)
        hessian = _hessian(kl_fn, params, dtype)

        def damped(vector):
            return jax.tree.map(lambda h, v: h + damping * v, hessian(vector), vector)

        direction, _ = jax.scipy.sparse.linalg.cg(damped, wide, maxiter=num_cg_steps, tol=1e-5)
        curvature = jnp.asarray(optax.tree.vdot(direction, damped(direction)))
        # Where the gradient is zero so is the direction; a divergence that is linear somewhere has no step either.
        usable = curvature > 0
        largest = jnp.where(usable, jnp.sqrt(2 * max_kl / jnp.where(usable, curvature, 1)), 0)
        before = value_fn(params)

        def moved(fraction):
            return jax.tree.map(lambda p, s: (p - fraction * largest * s).astype(p.dtype), params, direction)

        def trial(carry):
            count, *_ = carry
            fraction = jnp.asarray(shrink, dtype) ** count
            there = moved(fraction)
            kl = kl_fn(there).astype(dtype)
            # A comparison with NaN is false: a step to where either is not finite is refused.
            accepted = usable & (value_fn(there) < before) & (kl <= max_kl)
            return count + 1, accepted, jnp.where(accepted, fraction, 0), jnp.where(accepted, kl, 0)

        start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), *jax.tree.map(jnp.zeros_like, (largest, largest)))
        *_, fraction, kl = jax.lax.while_loop(lambda c: ~c[1] & (c[0] < max_trials), trial, start)
        moves = jax.tree.map(
            lambda p, s: jnp.where(fraction > 0, -fraction * largest * s, 0).astype(p.dtype), params, direction
        )
        return moves, TrustRegionState(fraction, kl)

    return optax.GradientTransformationExtraArgs(init, update)


def _hessian(function: Callable[[PyTree], jax.Array], params: PyTree, dtype) -> Callable[[PyTree], PyTree]:
    """`vector -> H vector`; the backward pass of the gradient is linearised once, for all of the vectors."""
    # `H` is symmetric: its product with a vector is the vector's with it.
    _, pull_back = jax.vjp(jax.grad(function), params)

    def product(vector):
        narrow = jax.tree.map(lambda v, p: v.astype(p.dtype), vector, params)
        return jax.tree.map(lambda h: h.astype(dtype), pull_back(narrow)[0])

    return product
