"""The form in which every image data set arrives."""

from typing import NamedTuple

import numpy as np


class ImageClasses(NamedTuple):
    """Images grouped by class, as `image_episodes` takes them.

    Attributes:
      images: uint8 `[num_classes, images_per_class, height, width, channels]`.
      names: Name of each class.
    """

    images: np.ndarray
    names: tuple[str, ...]


class Splits(NamedTuple):
    """Disjoint sets of classes for meta-training, meta-validation and meta-testing."""

    train: ImageClasses
    valid: ImageClasses
    test: ImageClasses
