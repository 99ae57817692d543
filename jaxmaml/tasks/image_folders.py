"""Image data sets in folders `split/class/image`, packed or not; mini-ImageNet among them."""

import concurrent.futures
import functools
import hashlib
import io
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import progress

from jaxmaml import checks
from jaxmaml.tasks import files
from jaxmaml.tasks.splits import ImageClasses, Splits

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PARTS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}


class _Image(NamedTuple):
    """Where an image is, what changes with it, and how its bytes are read."""

    name: str
    stamp: str
    read: Callable[[], bytes]


def load(
    data_dir: str | pathlib.Path,
    *,
    image_size: int = 84,
    images_per_class: int | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
    cache_dir: str | pathlib.Path | None = None,
) -> Splits:
    """Read images in folders `split/class/image`, or `class/image` with a split of the classes beside.

    Args:
      data_dir: Folder of `train`, `val` (or `valid`) and `test`, or of zips that hold them (`train.zip`, or in parts
        `train-0.zip` ...); with `split`, of one folder for each class.
      image_size: Side in pixels; images of another size are resized (Lanczos). RGB.
      images_per_class: Take the first so many of each class, in order of names; by default all, and each class of a
        part must have as many as the others.
      split: `{"train": [class, ...], "valid": [...], "test": [...]}`, such as from a JSON file.
      cache_dir: Where the decoded arrays are kept as .npy, to be mapped into memory by the next call; defaults to the
        user's cache folder.

    Returns:
      `Splits` of `ImageClasses`, images uint8 `[num_classes, images_per_class, image_size, image_size, 3]`,
      memory-mapped.

    Raises:
      FileNotFoundError: If `data_dir` or one of its parts does not exist.
      ValueError: If a part has no images, classes have too few or different numbers of them, or a file is no image.
      ImportError: Without the extra `data`.

    Example:
      splits = jaxmaml.tasks.image_folders.load("path/to/cub", image_size=84, images_per_class=40)
    """
    data_dir = pathlib.Path(data_dir)
    checks.positive_int("image_size", image_size)
    if images_per_class is not None:
        checks.positive_int("images_per_class", images_per_class)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"`data_dir` {data_dir} is not a folder.")
    cache_dir = pathlib.Path(cache_dir) if cache_dir else files.default_cache()
    parts = _parts_by_split(data_dir, split) if split is not None else {part: _part(data_dir, part) for part in PARTS}
    return Splits(
        **{
            part: _decoded(f"{data_dir}/{part}", classes, image_size, images_per_class, cache_dir)
            for part, classes in parts.items()
        }
    )


def mini_imagenet(data_dir: str | pathlib.Path, *, cache_dir: str | pathlib.Path | None = None) -> Splits:
    """Read mini-ImageNet, 84 x 84, in Ravi and Larochelle's split: 64, 16 and 20 classes.

    Args:
      data_dir: As for `load`: folders or zips of `train`, `val` and `test`.
      cache_dir: As for `load`.
    Returns:
      `Splits`, images uint8 `[num_classes, images_per_class, 84, 84, 3]`.
    Raises:
      ValueError: If the parts have other numbers of classes; and what `load` raises.
    Example:
      splits = jaxmaml.tasks.image_folders.mini_imagenet("path/to/mini-imagenet")
      splits.train.images.shape  # (64, 600, 84, 84, 3)

    References:
      Ravi and Larochelle, 2017, https://openreview.net/forum?id=rJY0-Kcll
    """
    splits = load(data_dir, cache_dir=cache_dir)
    for part, expected in zip(splits._fields, (64, 16, 20), strict=True):
        found = len(getattr(splits, part).names)
        if found != expected:
            raise ValueError(f"mini-ImageNet has {expected} {part} classes, got {found} in {data_dir}.")
    return splits


def _part(data_dir: pathlib.Path, part: str) -> dict[str, list[_Image]]:
    """The classes of a part, from its folder or from its zips."""
    for name in PARTS[part]:
        if (data_dir / name).is_dir():
            return _in_folders(data_dir / name)
        archives = sorted({*data_dir.glob(f"{name}.zip"), *data_dir.glob(f"{name}-*.zip")})
        if archives:
            return _in_archives(archives)
    wanted = " or ".join(f"{name}/ or {name}.zip" for name in PARTS[part])
    raise FileNotFoundError(f"{data_dir} has no part {part!r}: neither {wanted}.")


def _parts_by_split(data_dir: pathlib.Path, split: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[_Image]]]:
    if set(split) != set(PARTS):
        raise ValueError(f"`split` must have the keys {', '.join(PARTS)}; got {', '.join(map(str, split))}.")
    classes = _in_folders(data_dir)
    missing = [name for names in split.values() for name in names if name not in classes]
    if missing:
        raise ValueError(f"`split` names classes that {data_dir} does not have: {', '.join(missing[:5])} ...")
    return {part: {name: classes[name] for name in names} for part, names in split.items()}


def _in_folders(folder: pathlib.Path) -> dict[str, list[_Image]]:
    found: dict[str, list[_Image]] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in SUFFIXES:
            stat = path.stat()
            image = _Image(str(path), f"{path} {stat.st_size} {stat.st_mtime_ns}", path.read_bytes)
            found.setdefault(path.parent.name, []).append(image)
    return found


def _in_archives(archives: list[pathlib.Path]) -> dict[str, list[_Image]]:
    found: dict[str, list[_Image]] = {}
    for archive in archives:
        if not zipfile.is_zipfile(archive):
            raise ValueError(files.not_a_zip(archive, archive))
        opened = zipfile.ZipFile(archive)  # Stays open for its readers; zipfile locks itself among threads.
        for info in opened.infolist():
            path = pathlib.PurePosixPath(info.filename)
            if path.suffix.lower() in SUFFIXES and "__MACOSX" not in path.parts:
                read = functools.partial(opened.read, info)
                image = _Image(f"{archive}/{path}", f"{info.filename} {info.CRC}", read)
                found.setdefault(path.parent.name, []).append(image)
    return found


def _decoded(
    where: str,
    classes: dict[str, list[_Image]],
    image_size: int,
    images_per_class: int | None,
    cache_dir: pathlib.Path,
) -> ImageClasses:
    counts = {name: len(images) for name, images in classes.items()}
    if not counts:
        raise ValueError(f"{where} has no images in folders of classes.")
    least, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
    if images_per_class is None and counts[least] != counts[most]:
        raise ValueError(
            f"The classes of {where} must have equally many images: {least} has {counts[least]}, {most} {counts[most]}."
            f" Pass images_per_class={counts[least]} to take as many of each."
        )
    number = images_per_class or counts[least]
    if counts[least] < number:
        raise ValueError(f"`images_per_class` is {number}, but class {least} of {where} has {counts[least]} images.")
    chosen = {name: sorted(classes[name], key=lambda image: image.name)[:number] for name in sorted(classes)}
    digest = hashlib.sha256("\n".join(image.stamp for images in chosen.values() for image in images).encode())
    cached = cache_dir / f"images-{image_size}-{digest.hexdigest()[:12]}.npy"
    if not cached.exists():
        _decode(cached, [image for images in chosen.values() for image in images], image_size, where)
    images = np.load(cached, mmap_mode="r")
    return ImageClasses(images.reshape(len(chosen), number, image_size, image_size, 3), tuple(chosen))


def _decode(path: pathlib.Path, images: list[_Image], image_size: int, where: str) -> None:
    """Write `images` as one array, in as many threads as there are cores."""
    pillow: Any = files.require("PIL.Image")

    def decode(image: _Image) -> np.ndarray:
        try:
            opened = pillow.open(io.BytesIO(image.read())).convert("RGB")
        except Exception as error:
            raise ValueError(f"{image.name} is not an image that Pillow reads: {error}") from error
        if opened.size != (image_size, image_size):
            opened = opened.resize((image_size, image_size), pillow.Resampling.LANCZOS)
        return np.asarray(opened, np.uint8)

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(images), image_size, image_size, 3))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        decoded = progress.track(threads.map(decode, images), description=f"decoding {where}", total=len(images))
        for index, image in enumerate(decoded):
            array[index] = image
    array.flush()
    partial.replace(path)
