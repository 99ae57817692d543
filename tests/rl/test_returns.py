"""Returns, baselines and advantages against plain loops and NumPy's least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import rl


def batch(num_trajectories=6, horizon=7, seed=0, weights=None) -> rl.Trajectories:
    """Of different lengths."""
    random = np.random.default_rng(seed)
    shape = (num_trajectories, horizon)
    lengths = random.integers(2, horizon + 1, num_trajectories)
    mask = (np.arange(horizon) < lengths[:, None]).astype(np.float32)
    rewards = random.normal(size=shape).astype(np.float32) * mask
    observations = random.normal(size=(*shape, 2)).astype(np.float32)
    zeros = jnp.zeros(shape)
    return rl.Trajectories(jnp.asarray(observations), zeros, jnp.asarray(rewards), zeros, zeros, mask, weights)


def test_generalized_advantages_are_those_of_a_loop():
    made, discount, gae_lambda = batch(), 0.9, 0.7
    values = np.random.default_rng(1).normal(size=made.rewards.shape).astype(np.float32) * made.mask
    expected = np.zeros_like(values)
    for i, t in np.ndindex(*values.shape):
        for u in range(t, values.shape[1]):
            following = values[i, u + 1] if u + 1 < values.shape[1] else 0.0
            error = made.rewards[i, u] + discount * following - values[i, u]
            expected[i, t] += (discount * gae_lambda) ** (u - t) * error
    found = rl.generalized_advantages(made.rewards, values, discount=discount, gae_lambda=gae_lambda)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_returns_to_go_are_those_of_a_loop(discount):
    rewards = np.asarray(batch().rewards)
    expected = rewards.copy()
    for t in range(rewards.shape[1] - 2, -1, -1):
        expected[:, t] += discount * expected[:, t + 1]
    np.testing.assert_allclose(rl.returns_to_go(rewards, discount), expected, atol=1e-6)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.5], np.float32)])
def test_the_linear_baseline_is_numpys_least_squares(weights):
    made, regularization = batch(weights=weights), 0.3
    returns = rl.returns_to_go(made.rewards, 0.9)
    time = np.broadcast_to((np.arange(7) / 100)[None, :, None], (6, 7, 1))
    seen = np.asarray(made.observations, np.float64)
    rows = np.concatenate([seen, seen**2, time, time**2, time**3, np.ones_like(time)], axis=-1).reshape(42, 8)
    each = np.ones(6) if weights is None else 6 * weights / weights.sum()
    scale = np.sqrt(made.mask * each[:, None]).reshape(-1)
    targets = np.concatenate([scale * np.asarray(returns).reshape(-1), np.zeros(8)])
    system = np.concatenate([scale[:, None] * rows, np.sqrt(regularization) * np.eye(8)])
    expected = (rows @ np.linalg.lstsq(system, targets)[0]).reshape(6, 7)
    np.testing.assert_allclose(rl.linear_baseline(regularization)(made, returns), expected, atol=1e-4)


def test_the_linear_baseline_survives_columns_of_zeros():
    made = batch()._replace(observations=jnp.zeros((6, 7, 2)))
    assert np.isfinite(rl.linear_baseline()(made, made.rewards)).all()


def test_the_linear_baseline_calls_no_lapack():
    """On a CPU, a program of many rollouts that calls it can deadlock."""
    compiled = jax.jit(rl.linear_baseline()).lower(batch(), batch().rewards).compile()
    assert 'custom_call_target="lapack' not in compiled.as_text()


def test_the_linear_baseline_is_exact_in_long_trajectories():
    """Their features are nearly dependent; the reference is in float64."""
    made = batch(40, 100)
    returns = rl.returns_to_go(made.rewards, 0.99)
    seen, time = np.asarray(made.observations, np.float64), np.arange(100)[None, :, None] / 100
    time = np.broadcast_to(time, (40, 100, 1))
    rows = np.concatenate([seen, seen**2, time, time**2, time**3, np.ones_like(time)], axis=-1).reshape(4000, 8)
    scale = np.sqrt(np.asarray(made.mask, np.float64)).reshape(-1)
    system = np.concatenate([scale[:, None] * rows, np.sqrt(1e-5) * np.eye(8)])
    targets = np.concatenate([scale * np.asarray(returns).reshape(-1), np.zeros(8)])
    expected = (rows @ np.linalg.lstsq(system, targets)[0]).reshape(40, 100)
    np.testing.assert_allclose(rl.linear_baseline()(made, returns), expected, atol=2e-4)


def test_advantages_are_returns_less_the_baseline_and_zero_after_the_end():
    made = batch()
    plain = rl.advantages(discount=0.9, baseline=None, standardize=False)(made)
    np.testing.assert_allclose(plain, rl.returns_to_go(made.rewards, 0.9) * made.mask, atol=1e-6)
    constant = rl.advantages(
        discount=0.9, baseline=lambda batch, returns: jnp.full_like(returns, 2.0), standardize=False
    )(made)
    np.testing.assert_allclose(constant, (plain - 2.0) * made.mask, atol=1e-5)


def test_standardized_advantages_have_mean_0_and_deviation_1_over_the_steps_there_are():
    made = batch()
    found = np.asarray(rl.advantages()(made))
    running = np.asarray(made.mask, bool)
    assert found[running].mean() == pytest.approx(0, abs=1e-5)
    assert found[running].std() == pytest.approx(1, abs=1e-4)
    assert not found[~running].any()


def test_no_gradient_flows_through_advantages():
    made = batch()
    slope = jax.grad(lambda r: jnp.sum(rl.advantages()(made._replace(rewards=r)) ** 2))(made.rewards)
    assert not slope.any()


def test_bad_input():
    made = batch()
    with pytest.raises(ValueError, match=r"`discount` must be between 0 and 1, got 1.5"):
        rl.advantages(discount=1.5)
    with pytest.raises(ValueError, match=r"`gae_lambda` must be between 0 and 1, got 2"):
        rl.advantages(gae_lambda=2)
    with pytest.raises(ValueError, match=r"needs observations \[num_trajectories, horizon, observation_size\]"):
        rl.advantages()(made._replace(observations=jnp.zeros((6, 7))))
    with pytest.raises(ValueError, match=r"`values` must have shape \(6, 7\), got \(7,\)"):
        rl.generalized_advantages(made.rewards, jnp.zeros(7), discount=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match=r"`weights` must be one for each trajectory, \(6,\), got \(7,\)"):
        rl.mean_return(made._replace(weights=jnp.ones(7)))
