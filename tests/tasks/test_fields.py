"""Images, phantoms and projections, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml

fields = jaxmaml.tasks.fields
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)


def test_pixel_centres():
    points = fields.pixel_centres(2, 4).reshape(2, 4, 2)
    np.testing.assert_allclose(points[0, :, 0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(points[:, 0, 1], [-0.5, 0.5])
    assert (points[..., 0] == points[:1, :, 0]).all()


def test_a_task_is_one_whole_image():
    sample = fields.images(IMAGES)
    seen = set()
    for key in jax.random.split(jax.random.key(0), 40):
        task = sample(key)
        np.testing.assert_array_equal(task.support.targets, task.query.targets)
        np.testing.assert_array_equal(task.support.inputs, fields.pixel_centres(4, 6))
        picture = np.rint(255 * np.asarray(task.support.targets).reshape(4, 6, 3)).astype(np.uint8)
        (number,) = (i for i, image in enumerate(IMAGES) if (image == picture).all())
        seen.add(number)
    assert seen == set(range(5))
    assert jax.tree.leaves(sample)  # Its images are passed to a compiled function, and not compiled in.


@pytest.mark.parametrize("family", [fields.images, lambda images, **counts: fields.phantoms(6, **counts)])
def test_subsamples_are_distinct_fresh_and_independent(family):
    sample = family(IMAGES, num_points=7, num_queries=5)
    tasks = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(1), 500))
    support, query = np.asarray(tasks.support.inputs), np.asarray(tasks.query.inputs)
    assert support.shape == (500, 7, 2)
    assert query.shape == (500, 5, 2)
    assert all(len(np.unique(points, axis=0)) == 7 for points in support)
    assert not (support[0] == support[1]).all()
    places, counts = np.unique(support.reshape(-1, 2), axis=0, return_counts=True)
    height, width = (4, 6) if family is fields.images else (6, 6)
    assert len(places) == height * width  # Every pixel, about equally often: 3500 draws.
    expected = 3500 / len(places)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    same = (support[:, :, None] == query[:, None]).all(-1).any((1, 2))
    assert same.sum() > 0  # Independent, so that they meet now and then.


def test_a_subsample_has_the_images_colours():
    whole, part = fields.phantoms(8, channels=2), fields.phantoms(8, channels=2, num_points=9)
    full, some = whole(jax.random.key(3)), part(jax.random.key(3))
    np.testing.assert_array_equal(full.query.targets, some.query.targets)
    colours = {tuple(map(float, p)): c for p, c in zip(full.query.inputs, full.query.targets, strict=True)}
    for point, colour in zip(some.support.inputs, some.support.targets, strict=True):
        np.testing.assert_array_equal(colours[tuple(map(float, point))], colour)


def test_psnr_in_closed_form():
    batch = jaxmaml.Batch(jnp.zeros((2, 1)), jnp.array([[0.1], [0.3]]))
    for peak in (1.0, 255.0):
        loss, aux = jaxmaml.reconstruction(lambda params, x: x, peak=peak)(None, batch)
        np.testing.assert_allclose(loss, 0.05, rtol=1e-6)
        np.testing.assert_allclose(aux["psnr"], 10 * np.log10(peak**2 / 0.05), rtol=1e-6)
    _, aux = jaxmaml.reconstruction(lambda params, x: x)(None, jaxmaml.Batch(jnp.ones(3), jnp.ones(3)))
    assert aux["psnr"] == jnp.inf
    gradient = jax.grad(lambda x: jaxmaml.reconstruction(lambda p, x: x)(None, jaxmaml.Batch(x, jnp.ones(3)))[0])
    np.testing.assert_array_equal(gradient(jnp.ones(3)), jnp.zeros(3))
    with pytest.raises(ValueError, match="`peak` must be > 0"):
        jaxmaml.reconstruction(lambda params, x: x, peak=0.0)


def ellipse(centre, half_axes, angle, density=1.0):
    return fields.Ellipses(*(jnp.array([leaf]) for leaf in (centre, half_axes, angle, [density])))


def test_density_of_an_ellipse():
    """Turned by 90 degrees, the long axis is the second coordinate's."""
    one = ellipse([0.1, 0.0], [0.5, 0.2], np.pi / 2, 0.7)
    points = jnp.array([[0.1, 0.49], [0.1, 0.51], [0.29, 0.0], [0.31, 0.0]])
    np.testing.assert_allclose(fields.density(one, points)[:, 0], [0.7, 0.0, 0.7, 0.0])


def test_chords_of_a_disc():
    """2 sqrt(r^2 - s^2), whatever the angle, for a disc round the origin and for one beside it."""
    offsets = jnp.linspace(-0.9, 0.9, 13)
    for angle in (0.0, 0.4, 2.0):
        rays = fields.Rays(jnp.full(13, angle), offsets)
        for centre in ([0.0, 0.0], [0.3, -0.2]):
            distance = offsets - (centre[0] * np.cos(angle) + centre[1] * np.sin(angle))
            expected = 2 * 3.0 * np.sqrt(np.maximum(0.4**2 - distance**2, 0))
            found = fields.line_integrals(ellipse(centre, [0.4, 0.4], 1.3, 3.0), rays)[:, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_projection_has_the_area_of_the_ellipse():
    offsets = jnp.linspace(-1, 1, 4001)
    for angle in (0.0, 0.7, 1.6):
        rays = fields.Rays(jnp.full(4001, angle), offsets)
        chords = fields.line_integrals(ellipse([0.1, 0.2], [0.6, 0.25], 0.5, 2.0), rays)[:, 0]
        np.testing.assert_allclose(np.trapezoid(chords, offsets), 2.0 * np.pi * 0.6 * 0.25, rtol=1e-3)


def test_the_numerical_integral_of_a_phantom_is_its_line_integral():
    ellipses = fields.random_ellipses(jax.random.key(5), 4, 2)
    rays = fields.Rays(jnp.linspace(0, 3, 40), jnp.linspace(-0.95, 0.95, 40))
    numerical = fields.integrated(fields.density, num_samples=4000)(ellipses, rays)
    np.testing.assert_allclose(numerical, fields.line_integrals(ellipses, rays), atol=3e-3)


def test_the_integral_of_a_smooth_field():
    """Of x^2 + y^2 over a chord of half-length h at distance s: 2 h s^2 + 2 h^3 / 3."""
    apply = fields.integrated(lambda params, points: jnp.sum(jnp.square(points), -1, keepdims=True), num_samples=200)
    rays = fields.Rays(jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 0.5, 1.0]))
    half = np.sqrt(1 - np.array([0.0, 0.5, 1.0]) ** 2)
    expected = 2 * half * np.array([0.0, 0.5, 1.0]) ** 2 + 2 * half**3 / 3
    np.testing.assert_allclose(apply(None, rays)[:, 0], expected, rtol=1e-4, atol=1e-6)
    points = jnp.array([[0.6, 0.8]])
    np.testing.assert_allclose(apply(None, points), [[1.0]], rtol=1e-6)


def test_phantoms_stay_in_range():
    sample = fields.phantoms(24, num_details=8, channels=3)
    densities = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(6), 100)).query.targets
    assert densities.min() >= -1e-6
    assert densities.max() <= 1 + 1e-6
    points = np.asarray(fields.pixel_centres(24, 24))
    outside = np.hypot(*points.T) > 1
    assert not densities[:, outside].any()
    assert (densities.std((1, 2)) > 0.02).all()
    alone = jax.vmap(fields.phantoms(24, num_details=0))(jax.random.split(jax.random.key(6), 20)).query.targets
    assert all(len(np.unique(one)) == 2 for one in np.asarray(alone))


@pytest.mark.parametrize("query", ["image", "projections"])
def test_projections_measure_the_phantom(query):
    task = fields.projections(16, num_angles=6, num_rays=16, query=query, channels=2)(jax.random.key(7))
    rays = task.support.inputs
    assert task.support.targets.shape == (96, 2)
    angles = np.asarray(rays.angles).reshape(6, 16)
    np.testing.assert_allclose(np.diff(angles[:, 0]), np.pi / 6, rtol=1e-4)
    assert (angles == angles[:, :1]).all()
    # All of a projection's rays together have the mass of the image, whatever the angle.
    masses = np.asarray(task.support.targets).reshape(6, 16, 2).sum(1) * 2 / 16
    np.testing.assert_allclose(masses, np.broadcast_to(masses.mean(0), (6, 2)), rtol=0.06)
    if query == "image":
        mass = task.query.targets.mean(0) * 4
        np.testing.assert_allclose(masses.mean(0), mass, rtol=0.06)
        assert task.query.inputs.shape == (256, 2)
    else:
        other = task.query.inputs.angles
        assert not np.allclose(other, rays.angles)
        np.testing.assert_allclose(task.query.targets.sum(0), task.support.targets.sum(0), rtol=0.06)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fields.images(IMAGES / 255.0), TypeError, "`images` must be a uint8 array, got float64"),
        (lambda: fields.images(IMAGES[0]), ValueError, r"`images` must be \[num_images, height, width, channels\]"),
        (lambda: fields.images(IMAGES, num_points=25), ValueError, "`num_points` must be at most .* 24, got 25"),
        (lambda: fields.phantoms(4, num_queries=0), ValueError, "`num_queries` must be >= 1"),
        (lambda: fields.phantoms(0), ValueError, "`size` must be >= 1"),
        (lambda: fields.projections(query="rays"), ValueError, "`query` must be one of 'image', 'projections'"),
        (lambda: fields.projections(num_angles=0), ValueError, "`num_angles` must be >= 1"),
        (lambda: fields.integrated(None), TypeError, "`apply` must be callable"),
        (lambda: fields.pixel_centres(0, 3), ValueError, "`height` must be >= 1"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
