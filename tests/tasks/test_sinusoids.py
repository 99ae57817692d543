"""The sinusoid family, against what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxmaml


def many(sample, count=20_000):
    return jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), count))


def test_points_lie_on_the_tasks_own_sinusoid():
    tasks = many(jaxmaml.tasks.sinusoid(3, 4, with_parameters=True), 100)
    assert tasks.support.inputs.shape == (100, 3, 3)
    for part in tasks:
        x, amplitude, phase = jnp.moveaxis(part.inputs, -1, 0)
        np.testing.assert_allclose(part.targets[..., 0], amplitude * jnp.sin(x - phase), rtol=1e-4, atol=1e-5)
        assert (amplitude == amplitude[:, :1]).all()


def test_ranges():
    tasks = many(jaxmaml.tasks.sinusoid(5, 5, with_parameters=True))
    x, amplitude, phase = jnp.moveaxis(tasks.query.inputs, -1, 0)
    for values, low, high in [(x, -5, 5), (amplitude, 0.1, 5), (phase, 0, np.pi)]:
        np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=0.01 * (high - low))
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.02 * (high - low))


def test_analytic_anchors():
    """Predicting zero has an error of 4.252, and -1.623 cos x, the best single predictor, of 3.006."""
    query = many(jaxmaml.tasks.sinusoid()).query
    np.testing.assert_allclose(jnp.mean(query.targets**2), 4.252, rtol=0.02)
    np.testing.assert_allclose(jnp.mean((query.targets + 1.623 * jnp.cos(query.inputs)) ** 2), 3.006, rtol=0.02)


def test_the_same_key_is_equal_to_the_bit():
    sample = jaxmaml.tasks.sinusoid()
    first, second, other = sample(jax.random.key(1)), sample(jax.random.key(1)), sample(jax.random.key(2))
    np.testing.assert_array_equal(first.query.inputs, second.query.inputs)
    assert not np.allclose(first.query.inputs, other.query.inputs)


def test_noise_is_independent_of_all_else():
    """`split` makes its keys by folding in numbers, so that `fold_in(key, 0)` is the first of them."""
    told, clean = (
        many(jaxmaml.tasks.sinusoid(4, 4, with_parameters=told, noise_std=noise), 5000)
        for told, noise in ((True, 0.3), (False, 0.0))
    )
    inputs = np.concatenate([told.support.inputs, told.query.inputs], 1)
    noise = np.concatenate([part.targets - plain.targets for part, plain in zip(told, clean, strict=True)], 1)[..., 0]
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.02)

    def ranks(values):
        return np.argsort(np.argsort(values))

    columns = [ranks(noise[:, point]) for point in range(8)]
    others = [ranks(inputs[:, 0, number]) for number in (1, 2)] + [ranks(inputs[:, point, 0]) for point in range(8)]
    correlations = np.corrcoef([*columns, *others])[:8, :]
    np.testing.assert_allclose(correlations, np.eye(8, 18), atol=5 / np.sqrt(5000))
