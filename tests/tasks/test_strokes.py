"""The procedural stand-in for Omniglot."""

import jax
import numpy as np
import pytest

from jaxmaml.tasks import image_episodes, strokes


@pytest.fixture(scope="module")
def splits():
    return strokes.load(jax.random.key(3), num_classes=(30, 6, 8), images_per_class=5)


@pytest.mark.slow
def test_same_form_as_omniglot(splits):
    assert splits.train.images.shape == (30, 5, 28, 28, 1)
    assert [len(part.names) for part in splits] == [30, 6, 8]
    assert splits.train.images.dtype == np.uint8
    assert len({name for part in splits for name in part.names}) == 44
    image_episodes(splits.test.images, num_ways=5, num_shots=1, num_queries=2, rotate=True)(jax.random.key(0))


def test_drawings_look_like_ink_on_paper(splits):
    ink = splits.train.images / 255.0
    coverage = ink.mean((2, 3, 4))
    assert coverage.min() > 0.005
    assert coverage.max() < 0.4
    assert ink.max() == 1.0
    assert np.median(ink) == 0.0


def test_drawings_of_a_character_differ_less_than_characters(splits):
    vectors = splits.train.images.reshape(30, 5, -1).astype(float)
    within = np.mean([np.linalg.norm(v[0] - v[1]) for v in vectors])
    between = np.mean([np.linalg.norm(vectors[i, 0] - vectors[i - 1, 0]) for i in range(30)])
    assert 0 < within < 0.9 * between


def test_the_same_key_is_equal_to_the_bit(splits):
    again = strokes.load(jax.random.key(3), num_classes=(30, 6, 8), images_per_class=5)
    np.testing.assert_array_equal(splits.train.images, again.train.images)
    other = strokes.load(jax.random.key(4), num_classes=(30, 6, 8), images_per_class=5)
    assert not np.array_equal(splits.train.images, other.train.images)


def test_strict_promotion_of_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        strokes.load(num_classes=(1, 1, 1), images_per_class=1)
