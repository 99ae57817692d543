"""Log-probabilities, samples and divergences against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import rl

GAUSSIAN = rl.gaussian(lambda w, x: x @ w)
CATEGORICAL = rl.categorical(lambda w, x: x @ w)


def gaussian_at(mean, std):
    std = jnp.asarray(std)
    weights = jnp.asarray(mean)[None]
    return GAUSSIAN.distribution({"mean": weights, "log_std": jnp.log(std)}, jnp.ones((1,)))


def test_the_log_probability_of_a_gaussian():
    at = gaussian_at([1.0, -2.0], [0.5, 3.0])
    action = [0.25, 1.0]
    expected = sum(
        -((a - m) ** 2) / (2 * s**2) - math.log(s * math.sqrt(2 * math.pi))
        for a, m, s in zip(action, [1.0, -2.0], [0.5, 3.0], strict=True)
    )
    assert GAUSSIAN.log_prob(at, jnp.array(action)) == pytest.approx(expected, rel=1e-6)


def test_the_divergence_of_gaussians():
    p, q = gaussian_at([1.0, -2.0], [0.5, 3.0]), gaussian_at([0.0, 1.0], [2.0, 1.5])
    expected = sum(
        math.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5
        for m, s, n, t in zip([1.0, -2.0], [0.5, 3.0], [0.0, 1.0], [2.0, 1.5], strict=True)
    )
    assert GAUSSIAN.kl(p, q) == pytest.approx(expected, rel=1e-6)
    assert GAUSSIAN.kl(p, p) == 0


def test_categorical_log_probability_and_divergence():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.3])
    at = [CATEGORICAL.distribution(jnp.log(x)[None] + 7.0, jnp.ones((4, 1))) for x in (p, q)]
    found = CATEGORICAL.log_prob(at[0], jnp.array([0, 1, 2, 1]))
    np.testing.assert_allclose(found, np.log(p[[0, 1, 2, 1]]), rtol=1e-5)
    np.testing.assert_allclose(CATEGORICAL.kl(*at), np.full(4, np.sum(p * np.log(p / q))), rtol=1e-5)


def test_samples_have_the_distribution():
    keys = jax.random.split(jax.random.key(0), 20_000)
    at = gaussian_at([1.0, -2.0], [0.5, 3.0])
    drawn = jax.vmap(lambda key: GAUSSIAN.sample(at, key))(keys)
    np.testing.assert_allclose(drawn.mean(0), [1.0, -2.0], atol=0.1)
    np.testing.assert_allclose(drawn.std(0), [0.5, 3.0], rtol=0.03)
    log_probs = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    drawn = jax.vmap(lambda key: CATEGORICAL.sample(log_probs, key))(keys)
    np.testing.assert_allclose(np.bincount(drawn) / len(keys), [0.2, 0.5, 0.3], atol=0.02)


def test_a_standard_deviation_has_a_floor_without_a_gradient():
    policy = rl.gaussian(lambda w, x: x @ w, min_std=0.1)

    def log_std(value):
        params = {"mean": jnp.zeros((1, 1)), "log_std": jnp.array([value])}
        return policy.distribution(params, jnp.ones(1)).log_std[0]

    value, slope = jax.value_and_grad(log_std)(-9.0)
    assert value == pytest.approx(math.log(0.1))
    assert slope == 0
    assert jax.grad(log_std)(-1.0) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_is_that_of_the_parameters(dtype):
    params = {"mean": jnp.ones((3, 2), dtype), "log_std": jnp.zeros(2, dtype)}
    at = GAUSSIAN.distribution(params, jnp.ones((4, 3), dtype))
    action = GAUSSIAN.sample(at, jax.random.key(0))
    made = (*at, action, GAUSSIAN.log_prob(at, action), GAUSSIAN.kl(at, at))
    assert {leaf.dtype for leaf in made} == {jnp.dtype(dtype)}


def test_bad_input():
    params = {"mean": jnp.zeros((3, 2)), "log_std": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r'must be \{"mean": ..., "log_std": ...\}'):
        GAUSSIAN.distribution(params["mean"], jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`log_std` must have the shape of an action, \(2,\), got \(3,\)"):
        GAUSSIAN.distribution(params | {"log_std": jnp.zeros(3)}, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`actions` must have shape \(4, 2\), got \(2,\)"):
        GAUSSIAN.log_prob(GAUSSIAN.distribution(params, jnp.ones((4, 3))), jnp.zeros(2))
    with pytest.raises(TypeError, match="`actions` of a categorical policy must be integers, got dtype float32"):
        CATEGORICAL.log_prob(jnp.zeros((4, 2)), jnp.zeros(4))
    with pytest.raises(ValueError, match="`min_std` must be > 0"):
        rl.gaussian(lambda w, x: x, min_std=0.0)
