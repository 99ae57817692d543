"""Image files as 8-bit RGB arrays of one size, read by Pillow."""

import concurrent.futures
import io
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxmaml.tasks import files
from jaxmaml.training.progress import track

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


class Image(NamedTuple):
    """An image's name, a stamp that changes with its contents, and a function that reads its bytes."""

    name: str
    stamp: str
    read: Callable[[], bytes]


def decode(path: pathlib.Path, images: list[Image], image_size: int, where: str) -> None:
    """Write `images` to `path` as one array `[len(images), image_size, image_size, 3]`, decoded by all cores.

    Raises:
      ValueError: If one is no image, or has numbers of which the range is not known.
    """
    with files.written(path) as partial:
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(images), image_size, image_size, 3))
        with concurrent.futures.ThreadPoolExecutor() as threads:
            decoded = threads.map(lambda image: _decoded(image, image_size), images)
            for index, pixels in enumerate(track(decoded, f"decoding {where}", len(images))):
                array[index] = pixels
        array.flush()


def _decoded(image: Image, image_size: int) -> np.ndarray:
    pillow: Any = files.require("PIL.Image")
    try:
        opened = pillow.open(io.BytesIO(image.read()))
        opened.load()
    except Exception as error:
        raise ValueError(f"{image.name} is not an image that Pillow reads: {error}") from error
    opened = _in_color(image.name, files.require("PIL.ImageOps").exif_transpose(opened))
    if opened.size != (image_size, image_size):
        opened = opened.resize((image_size, image_size), pillow.Resampling.LANCZOS)
    return np.asarray(opened, np.uint8)


def _in_color(name: str, opened: Any) -> Any:
    """The image in 8-bit RGB, with transparent pixels on a white background."""
    pillow: Any = files.require("PIL.Image")
    if opened.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        values = np.asarray(opened)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"{name} has values from {values.min()} to {values.max()}, which are not 8 or 16 bits.")
        opened = pillow.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))
    elif opened.mode == "F":
        raise ValueError(f"{name} has floating-point values, of which the range is not known; save it in 8 bits.")
    if not opened.has_transparency_data:
        return opened.convert("RGB")
    opened = opened.convert("RGBA")
    ground = pillow.new("RGBA", opened.size, (255, 255, 255, 255))
    return pillow.alpha_composite(ground, opened).convert("RGB")
