"""Few-shot episodes: every pixel says which image it is of, so what was drawn can be read off."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml
from jaxmaml.tasks import image_episodes
from jaxmaml.tasks.episodes import _distinct

pytestmark = pytest.mark.usefixtures("quick_compiles")

NUM_CLASSES, PER_CLASS = 12, 7


@pytest.fixture(scope="module")
def images():
    """Image (c, i): pixel (0, 0) holds c, (0, 1) holds i, (1, 0) holds 100 and (1, 1) holds 200."""
    array = np.zeros((NUM_CLASSES, PER_CLASS, 2, 2, 1), np.uint8)
    array[:, :, 0, 0, 0] = np.arange(NUM_CLASSES)[:, None]
    array[:, :, 0, 1, 0] = np.arange(PER_CLASS)
    array[:, :, 1, 0, 0], array[:, :, 1, 1, 0] = 100, 200
    return array


def draw(images, count=300, **options):
    sample = image_episodes(images, **({"num_ways": 4, "num_shots": 2, "num_queries": 3} | options))
    tasks = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), count))
    return jax.tree.map(np.asarray, tasks)


def read(batch):
    return np.rint(batch.inputs[..., 0] * 255).astype(int)


def test_shapes_and_labels(images):
    tasks = draw(images)
    assert tasks.support.inputs.shape == (300, 8, 2, 2, 1)
    assert tasks.query.inputs.shape == (300, 12, 2, 2, 1)
    assert tasks.support.inputs.dtype == np.float32
    assert tasks.support.inputs.max() <= 1.0
    np.testing.assert_array_equal(tasks.support.targets, np.tile(np.repeat(np.arange(4), 2), (300, 1)))
    np.testing.assert_array_equal(tasks.query.targets, np.tile(np.repeat(np.arange(4), 3), (300, 1)))


def test_classes_are_distinct_and_support_and_query_do_not_overlap(images):
    tasks = draw(images)
    for support, query, labels in zip(read(tasks.support), read(tasks.query), tasks.query.targets, strict=True):
        classes = support[::2, 0, 0]
        assert len(set(classes)) == 4
        np.testing.assert_array_equal(support[1::2, 0, 0], classes)
        np.testing.assert_array_equal(query[:, 0, 0], classes[labels])
        drawn = [tuple(pixels) for pixels in np.concatenate([support, query])[:, 0].tolist()]
        assert len(set(drawn)) == len(drawn)


def test_every_class_image_and_label_is_as_likely(images):
    tasks = draw(images, count=4000)
    classes = read(tasks.support)[:, ::2, 0, 0]
    for label in range(4):  # The order of the ways is random: a class has no label of its own.
        counts = np.bincount(classes[:, label], minlength=NUM_CLASSES)
        assert np.abs(counts / 4000 - 1 / NUM_CLASSES).max() < 5 * np.sqrt(1 / NUM_CLASSES / 4000)
    for batch in tasks:
        counts = np.bincount(read(batch)[..., 0, 1].ravel(), minlength=PER_CLASS)
        assert np.abs(counts / counts.sum() - 1 / PER_CLASS).max() < 0.01


def test_rotation_is_one_for_a_class_and_task(images):
    tasks = draw(images, count=500, rotate=True)
    turns_seen = collections.Counter()
    reference = np.array([[0, 1], [2, 3]])
    for support, query in zip(read(tasks.support), read(tasks.query), strict=True):
        for way in range(4):
            turns = set()
            for picture in [*support[2 * way : 2 * way + 2], *query[3 * way : 3 * way + 3]]:
                corner = tuple(np.argwhere(picture == 200)[0])
                turns.add(next(t for t in range(4) if tuple(np.argwhere(np.rot90(reference, t) == 3)[0]) == corner))
            assert len(turns) == 1
            turns_seen[turns.pop()] += 1
    assert min(turns_seen[t] for t in range(4)) > 400


def test_without_rotation_images_stay(images):
    assert (read(draw(images).support)[..., 1, 1] == 200).all()


def test_all_classes_and_all_images_can_be_used(images):
    tasks = draw(images, num_ways=NUM_CLASSES, num_shots=3, num_queries=4)
    assert (np.sort(read(tasks.support)[:, ::3, 0, 0], axis=1) == np.arange(NUM_CLASSES)).all()


def test_distinct_is_uniform_over_ordered_pairs():
    pairs = jax.vmap(lambda key: _distinct(key, 4, 2, 4))(jax.random.split(jax.random.key(1), 12_000))
    counts = collections.Counter(map(tuple, np.asarray(pairs).tolist()))
    assert len(counts) == 12
    assert max(abs(c - 1000) for c in counts.values()) < 5 * np.sqrt(1000)


def test_the_same_key_is_equal_to_the_bit_under_scan(images):
    sample = image_episodes(images, num_ways=3, num_shots=1, num_queries=1, rotate=True)
    keys = jax.random.split(jax.random.key(2), 5)
    _, scanned = jax.lax.scan(lambda carry, key: (carry, sample(key)), None, keys)
    for index in range(5):
        np.testing.assert_array_equal(sample(keys[index]).query.inputs, scanned.query.inputs[index])
    assert jnp.issubdtype(scanned.query.targets.dtype, jnp.integer)


def test_classes_of_different_sizes_show_real_images_alone(images):
    counts = [5, 7, 6] * 4
    rows = [(image, label) for label in range(NUM_CLASSES) for image in images[label, : counts[label]]]
    stack, labels = np.stack([image for image, _ in rows]), np.array([label for _, label in rows])
    classes = jaxmaml.tasks.image_classes(stack, labels)
    assert classes.counts == tuple(counts)
    tasks = draw(classes, count=2000)
    for support, query in zip(read(tasks.support), read(tasks.query), strict=True):
        drawn = [tuple(pixels) for pixels in np.concatenate([support, query])[:, 0].tolist()]
        assert len(set(drawn)) == len(drawn)
        assert all(number < counts[label] for label, number in drawn)
    both = np.concatenate([read(batch)[:, :, 0].reshape(-1, 2) for batch in tasks])
    for label, count in enumerate(counts):
        found = np.bincount(both[both[:, 0] == label, 1], minlength=count)
        assert np.abs(found / found.sum() - 1 / count).max() < 0.03
    with pytest.raises(ValueError, match=r"at most the images of a class, 5, got 3 \+ 3"):
        draw(classes, num_shots=3, num_queries=3)


def test_the_draws_of_equal_sizes_do_not_change():
    """Checkpoints and published results depend on them; a traced size draws the same."""
    expected = _distinct(jax.random.key(3), 20, 4, 20)
    np.testing.assert_array_equal(expected, jax.jit(lambda size: _distinct(jax.random.key(3), size, 4, 20))(20))
    np.testing.assert_array_equal(expected, _distinct(jax.random.key(3), 20, 4, 30))
