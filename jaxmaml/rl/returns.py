"""Returns, baselines and advantages of recorded trajectories."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.rl import least_squares
from jaxmaml.rl.rollouts import Trajectories, step_weights

#: `(trajectories, returns to go [n, h]) -> values [n, h]`.
Baseline = Callable[[Trajectories, jax.Array], jax.Array]


def returns_to_go(rewards: jax.Array, discount: float = 1.0) -> jax.Array:
    """`R_t = sum_{u >= t} discount^(u - t) r_u` along the last axis.

    Args:
      rewards: `[..., horizon]`, zero after the end of a trajectory.
      discount: Between 0 and 1.
    Returns:
      `[..., horizon]`.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> jaxmaml.rl.returns_to_go(jnp.array([1.0, 2.0, 4.0]), discount=0.5).tolist()
      [3.0, 4.0, 4.0]
    """
    _fraction("discount", discount)
    return _discounted_sums(rewards, discount)


def generalized_advantages(rewards: jax.Array, values: jax.Array, *, discount: float, gae_lambda: float) -> jax.Array:
    """`A_t = sum_{u >= t} (discount gae_lambda)^(u - t) (r_u + discount V_{u+1} - V_u)`; `V` is 0 after the last step.

    Args:
      rewards: `[..., horizon]`, zero after the end of a trajectory.
      values: `V`, `[..., horizon]`, zero after the end of a trajectory.
      discount: Between 0 and 1.
      gae_lambda: Between 0 (the least variance) and 1 (no bias: `R_t - V_t`).
    Returns:
      `[..., horizon]`.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> r, v = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
      >>> jaxmaml.rl.generalized_advantages(r, v, discount=1.0, gae_lambda=1.0).tolist()
      [2.5, 1.5]

    References:
      Schulman et al., 2016, https://arxiv.org/abs/1506.02438
    """
    _fraction("discount", discount)
    _fraction("gae_lambda", gae_lambda)
    checks.same_shape("values", values, rewards)
    following = jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)
    return _discounted_sums(rewards + discount * following - values, discount * gae_lambda)


def linear_baseline(regularization: float = 1e-5) -> Baseline:
    """Build the baseline that is linear in features of observation and time, fitted to the batch itself.

    The features of step `t` are `(o, o^2, s, s^2, s^3, 1)`, with `o` the observation between -10 and 10 and
    `s = t / 100`. Least squares with `regularization` times the squared norm of the coefficients, by a QR
    decomposition. The values are constants for derivatives. Fitted to the very trajectories that it is subtracted from,
    it leaves a bias that vanishes with their number.

    Args:
      regularization: > 0.
    Returns:
      `(trajectories, returns [num_trajectories, horizon]) -> values` of the same shape. Observations are arrays
      `[num_trajectories, horizon, observation_size]`.
    Raises:
      ValueError: If `regularization` is not > 0.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> step = jnp.ones((1, 3))
      >>> batch = jaxmaml.rl.Trajectories(jnp.zeros((1, 3, 2)), step, step, step, step, mask=step)
      >>> values = jaxmaml.rl.linear_baseline()(batch, jnp.array([[3.0, 2.0, 1.0]]))
      >>> bool(jnp.allclose(values, jnp.array([[3.0, 2.0, 1.0]]), atol=0.1))
      True

    References:
      Duan et al., 2016, https://arxiv.org/abs/1604.06778, and its code RLLab (`LinearFeatureBaseline`)
    """
    checks.positive("regularization", regularization)

    def baseline(trajectories: Trajectories, returns: jax.Array) -> jax.Array:
        returns = jax.lax.stop_gradient(returns)
        features = jax.lax.stop_gradient(_features(trajectories.observations, returns.shape))
        # All steps weigh 1 where no trajectory has a weight.
        weights = returns.shape[0] * step_weights(trajectories)
        dtype = jnp.promote_types(returns.dtype, jnp.float32)  # Half precision would not do.
        rows = features.reshape(-1, features.shape[-1]).astype(dtype)
        scale = jax.lax.stop_gradient(jnp.sqrt(weights.reshape(-1).astype(dtype)))
        coefficients = least_squares.ridge(
            scale[:, None] * rows, scale * returns.reshape(-1).astype(dtype), regularization
        )
        return (rows @ coefficients).reshape(returns.shape).astype(returns.dtype)

    return baseline


_DEFAULT = linear_baseline()


def advantages(
    *,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    baseline: Baseline | None = _DEFAULT,
    standardize: bool = True,
) -> Callable[[Trajectories], jax.Array]:
    """Build the advantages that the surrogates multiply probabilities by; constants for derivatives.

    Args:
      discount: Of rewards, between 0 and 1.
      gae_lambda: See `generalized_advantages`.
      baseline: Its value is subtracted; the linear one by default, `None` for none.
      standardize: Whether the advantages of a batch get mean 0 and standard deviation 1, as in most implementations.
        The scale of rewards then has no effect on the step, and the gradient is no longer that of the return.
    Returns:
      `trajectories -> [num_trajectories, horizon]`, zero after the end of a trajectory.
    Raises:
      ValueError: If `discount` or `gae_lambda` is not between 0 and 1.
    """
    _fraction("discount", discount)
    _fraction("gae_lambda", gae_lambda)
    checks.boolean("standardize", standardize)
    if baseline is not None:
        checks.function("baseline", baseline)

    def of(trajectories: Trajectories) -> jax.Array:
        rewards, mask = trajectories.rewards * trajectories.mask, trajectories.mask
        values = jnp.zeros_like(rewards)
        if baseline is not None:
            values = baseline(trajectories, _discounted_sums(rewards, discount)) * mask
        out = generalized_advantages(rewards, values, discount=discount, gae_lambda=gae_lambda)
        if standardize:
            weights = step_weights(trajectories)
            weights = weights / jnp.sum(weights)
            centred = out - jnp.sum(weights * out)
            out = centred / (jnp.sqrt(jnp.sum(weights * jnp.square(centred))) + 1e-8)
        return jax.lax.stop_gradient(out * mask)

    return of


def _discounted_sums(terms: jax.Array, discount: float) -> jax.Array:
    def step(after, term):
        total = term + discount * after
        return total, total

    _, sums = jax.lax.scan(step, jnp.zeros_like(terms[..., 0]), jnp.moveaxis(terms, -1, 0), reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def _features(observations: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if not hasattr(observations, "ndim") or observations.ndim != 3 or observations.shape[:2] != shape:
        raise ValueError(
            "The linear baseline needs observations [num_trajectories, horizon, observation_size] for returns of shape "
            f"{shape}, got {jax.tree.map(jnp.shape, observations)}."
        )
    seen = jnp.clip(observations, -10, 10)
    time = (jnp.arange(shape[1], dtype=observations.dtype) / 100)[None, :, None]
    time = jnp.broadcast_to(time, (*shape, 1))
    return jnp.concatenate([seen, seen**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1)


def _fraction(name: str, value: float) -> None:
    checks.number(name, value, at_least=0.0)
    if value > 1:
        raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")
