"""Containers of the image data sets: classes and their splits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ImageClasses(NamedTuple):
    """Images grouped by class, as `image_episodes` takes them.

    Attributes:
      images: uint8 `[num_classes, images_per_class, height, width, channels]`.
      names: Name of each class.
      counts: The number of images of each class, where these differ; the rest of its images is padding.
    """

    images: np.ndarray
    names: tuple[str, ...]
    counts: tuple[int, ...] | None = None


class Splits(NamedTuple):
    """Disjoint sets of classes for meta-training, meta-validation and meta-testing."""

    train: ImageClasses
    valid: ImageClasses
    test: ImageClasses


def image_classes(images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None) -> ImageClasses:
    """Group labelled images, such as those of CIFAR-FS and FC100, by class.

    Args:
      images: uint8 `[num_images, height, width, channels]`.
      labels: Integers `[num_images]`, not necessarily consecutive; classes are sorted by label.
      names: The names of the classes, indexed by label; the labels themselves by default.
    Returns:
      `ImageClasses`; where classes have different numbers of images, padded with zeros to the largest, and with
      `counts`.
    Raises:
      ValueError: If shapes do not fit, or there are no images. TypeError: If the images are not uint8 or the labels not
        integers.
    Example:
      >>> import numpy as np, jaxmaml
      >>> images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
      >>> classes = jaxmaml.tasks.image_classes(images, np.array([7, 3, 7, 3]))
      >>> classes.images[..., 0, 0, 0].tolist(), classes.names
      ([[1, 3], [0, 2]], ('3', '7'))
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`images` must be uint8 and `labels` integers, got {images.dtype} and {labels.dtype}.")
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            "`images` must be [num_images, height, width, channels] with a label each, got shapes "
            f"{images.shape} and {labels.shape}."
        )
    found, counts = np.unique(labels, return_counts=True)
    if not counts.size:
        raise ValueError("`images` must have at least one image, got none.")
    parts = np.split(images[np.argsort(labels, kind="stable")], np.cumsum(counts)[:-1])
    grouped = np.zeros((len(found), counts.max(), *images.shape[1:]), np.uint8)
    for place, part in zip(grouped, parts, strict=True):
        place[: len(part)] = part
    names = tuple(str(label if names is None else names[label]) for label in found)
    return ImageClasses(grouped, names, None if counts.min() == counts.max() else tuple(counts.tolist()))
