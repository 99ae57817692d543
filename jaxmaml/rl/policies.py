"""Policies: distributions over actions whose parameters a network computes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.types import PyTree


class Policy(NamedTuple):
    """A stochastic policy: four pure functions.

    A distribution is a pytree of arrays `[..., size]` with the leading axes of the observations, so that it can be
    recorded and compared with that of other parameters.

    Attributes:
      distribution: `(params, observations) -> distribution`.
      log_prob: `(distribution, actions) -> [...]`, in nats.
      sample: `(distribution, key) -> actions`.
      kl: `(p, q) -> [...]`, the divergence `KL(p || q)` of two distributions, in nats.
    """

    distribution: Callable[[PyTree, Any], Any]
    log_prob: Callable[[Any, jax.Array], jax.Array]
    sample: Callable[[Any, chex.PRNGKey], jax.Array]
    kl: Callable[[Any, Any], jax.Array]


class Gaussian(NamedTuple):
    """Independent normal distributions; both arrays are `[..., action_size]`."""

    mean: jax.Array
    log_std: jax.Array


def gaussian(apply: Callable[..., Any], *, min_std: float = 1e-6) -> Policy:
    """Build the policy `N(apply(params["mean"], observations), exp(params["log_std"])^2)`.

    The standard deviations do not depend on the observation.

    Args:
      apply: `(mean_params, observations [..., observation_size]) -> mean actions [..., action_size]`.
      min_std: Standard deviations below are raised to it, without a gradient.
    Returns:
      A policy whose parameters are `{"mean": parameters of apply, "log_std": [action_size]}` and whose actions are
      `[..., action_size]`.
    Raises:
      ValueError: If `min_std` is not > 0; in use: if the parameters are not such a mapping, or `log_std` does not have
        the shape of one action.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> policy = jaxmaml.rl.gaussian(lambda w, x: x @ w)
      >>> params = {"mean": jnp.zeros((3, 2)), "log_std": jnp.zeros(2)}
      >>> distribution = policy.distribution(params, jnp.ones((5, 3)))
      >>> policy.sample(distribution, jax.random.key(0)).shape
      (5, 2)
      >>> round(float(policy.log_prob(distribution, jnp.zeros((5, 2)))[0]), 3)      # -log(2 pi)
      -1.838

    References:
      Duan et al., 2016, https://arxiv.org/abs/1604.06778 (the usual form of it)
    """
    checks.function("apply", apply)
    checks.positive("min_std", min_std)

    def distribution(params: PyTree, observations: Any) -> Gaussian:
        if not isinstance(params, dict) or {*params} != {"mean", "log_std"}:
            raise ValueError(
                'The parameters of a Gaussian policy must be {"mean": ..., "log_std": ...}, got '
                f"{jax.tree.structure(params)}."
            )
        mean, log_std = apply(params["mean"], observations), params["log_std"]
        if log_std.shape != mean.shape[-1:]:
            raise ValueError(f"`log_std` must have the shape of an action, {mean.shape[-1:]}, got {log_std.shape}.")
        log_std = jnp.maximum(log_std, jnp.log(min_std).astype(log_std.dtype))
        return Gaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    def log_prob(at: Gaussian, actions: jax.Array) -> jax.Array:
        checks.same_shape("actions", actions, at.mean)
        scaled = (actions - at.mean) * jnp.exp(-at.log_std)
        return -jnp.sum(0.5 * jnp.square(scaled) + at.log_std + 0.5 * jnp.log(2 * jnp.pi).astype(scaled.dtype), axis=-1)

    def sample(at: Gaussian, key: chex.PRNGKey) -> jax.Array:
        return at.mean + jnp.exp(at.log_std) * jax.random.normal(key, at.mean.shape, at.mean.dtype)

    def kl(p: Gaussian, q: Gaussian) -> jax.Array:
        apart = jnp.square((p.mean - q.mean) * jnp.exp(-q.log_std))
        spread = jnp.exp(2 * (p.log_std - q.log_std))
        return jnp.sum(q.log_std - p.log_std + 0.5 * (spread + apart - 1), axis=-1)

    return Policy(distribution, log_prob, sample, kl)


def categorical(apply: Callable[..., Any]) -> Policy:
    """Build the policy `softmax(apply(params, observations))` over a finite set of actions.

    Args:
      apply: `(params, observations [..., observation_size]) -> logits [..., num_actions]`.
    Returns:
      A policy whose actions are integers `[...]` in `[0, num_actions)`; its distribution is the log-probabilities
      `[..., num_actions]`.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> policy = jaxmaml.rl.categorical(lambda w, x: x @ w)
      >>> distribution = policy.distribution(jnp.zeros((3, 4)), jnp.ones((5, 3)))
      >>> jnp.exp(policy.log_prob(distribution, jnp.zeros(5, int))).tolist()
      [0.25, 0.25, 0.25, 0.25, 0.25]
    """
    checks.function("apply", apply)

    def distribution(params: PyTree, observations: Any) -> jax.Array:
        return jax.nn.log_softmax(apply(params, observations), axis=-1)

    def log_prob(log_probs: jax.Array, actions: jax.Array) -> jax.Array:
        if not jnp.issubdtype(actions.dtype, jnp.integer):
            raise TypeError(f"`actions` of a categorical policy must be integers, got dtype {actions.dtype}.")
        checks.same_shape("actions", actions, log_probs[..., 0])
        return jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]

    def sample(log_probs: jax.Array, key: chex.PRNGKey) -> jax.Array:
        return jax.random.categorical(key, log_probs)

    def kl(p: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    return Policy(distribution, log_prob, sample, kl)
