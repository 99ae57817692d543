"""Image data sets in folders `split/class/image`, or zips of them, such as mini-ImageNet."""

import functools
import hashlib
import itertools
import os
import pathlib
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmaml import checks
from jaxmaml.tasks import files
from jaxmaml.tasks.images import SUFFIXES, Image, decode
from jaxmaml.tasks.splits import ImageClasses, Splits

PARTS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
# The version of the decoding; caches of other versions are not used.
_FORMAT = 2


def load(
    data_dir: str | pathlib.Path,
    *,
    image_size: int = 84,
    images_per_class: int | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
    cache_dir: str | pathlib.Path | None = None,
) -> Splits:
    """Read images in folders `split/class/image`, or `class/image` with a separate split of the classes.

    Args:
      data_dir: Folder of `train`, `val` (or `valid`) and `test`, or of zips that hold them (`train.zip`, or in parts
        `train-0.zip` ...); with `split`, of one folder for each class.
      image_size: The side in pixels; images of other sizes are resized (Lanczos). Images are converted to 8-bit RGB:
        16-bit grey is scaled, transparent pixels become white, and photographs are rotated as their EXIF data says.
      images_per_class: The number of images to take of each class, the first in order of their names. By default all
        are taken, and all classes of a part must have the same number.
      split: `{"train": [class, ...], "valid": [...], "test": [...]}`, such as from a JSON file.
      cache_dir: Where the decoded arrays are kept as .npy, to be mapped into memory by the next call; defaults to the
        user's cache folder.

    Returns:
      `Splits` of `ImageClasses`, images uint8 `[num_classes, images_per_class, image_size, image_size, 3]`,
      memory-mapped.

    Raises:
      FileNotFoundError: If `data_dir` or one of its parts does not exist.
      ValueError: If a part has no images, classes have too few or different numbers of them, a class is in two parts or
        twice in one, images lie at different depths of folders, or a file is not an image.
      ImportError: Without the extra `data`.
    Warns:
      UserWarning: If other files are skipped, whose names do not have an image's suffix.

    Example:
      splits = jaxmaml.tasks.image_folders.load("path/to/cub", image_size=84, images_per_class=40)
    """
    data_dir = files.folder(data_dir)
    checks.positive_int("image_size", image_size)
    if images_per_class is not None:
        checks.positive_int("images_per_class", images_per_class)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"`data_dir` {data_dir} is not a folder.")
    cache_dir = files.folder(cache_dir) if cache_dir else files.default_cache()
    parts = _parts_by_split(data_dir, split) if split is not None else {part: _part(data_dir, part) for part in PARTS}
    _check_disjoint(parts)
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


def _part(data_dir: pathlib.Path, part: str) -> dict[str, list[Image]]:
    """The classes of a part, from its folder or its zips."""
    for name in PARTS[part]:
        if (data_dir / name).is_dir():
            return _in_folders(data_dir / name)
        archives = sorted({*data_dir.glob(f"{name}.zip"), *data_dir.glob(f"{name}-*.zip")})
        if archives:
            return _in_archives(archives)
    wanted = " or ".join(f"{name}/ or {name}.zip" for name in PARTS[part])
    raise FileNotFoundError(f"{data_dir} has no part {part!r}: neither {wanted}.")


def _check_disjoint(parts: Mapping[str, Iterable[str]]) -> None:
    """Raise if a class is in two parts: meta-testing on classes of meta-training would be meaningless."""
    for (one, classes), (other, others) in itertools.combinations(parts.items(), 2):
        shared = sorted({*classes} & {*others})
        if shared:
            raise ValueError(
                f"Each class must be in one part, but {len(shared)} are in {one} and in {other}: "
                f"{', '.join(shared[:5])} ... Pass `split` to choose."
            )


def _parts_by_split(data_dir: pathlib.Path, split: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[Image]]]:
    if set(split) != set(PARTS):
        raise ValueError(f"`split` must have the keys {', '.join(PARTS)}; got {', '.join(map(str, split))}.")
    classes = _in_folders(data_dir)
    for part, names in split.items():
        missing = [name for name in names if name not in classes]
        if missing:
            raise ValueError(f"`split` names classes that {data_dir} does not have: {', '.join(missing[:5])} ...")
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"`split` names a class twice in {part!r}: {', '.join(twice[:5])} ...")
    return {part: {name: classes[name] for name in names} for part, names in split.items()}


def _in_folders(folder: pathlib.Path) -> dict[str, list[Image]]:
    paths = sorted(pathlib.Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names)
    images = []
    for path in _images(folder, [(path.relative_to(folder), path) for path in paths]):
        stat = path.stat()
        images.append((path.parent, Image(str(path), f"{path} {stat.st_size} {stat.st_mtime_ns}", path.read_bytes)))
    return _by_class(folder, images)


def _in_archives(archives: list[pathlib.Path]) -> dict[str, list[Image]]:
    images, members = [], []
    for archive in archives:
        if not zipfile.is_zipfile(archive):
            raise ValueError(files.not_a_zip(archive, archive))
        opened = zipfile.ZipFile(archive)  # Stays open for its readers; zipfile locks itself among threads.
        for info in opened.infolist():
            if not info.is_dir():
                members.append((pathlib.PurePosixPath(info.filename), (archive, opened, info)))
    for archive, opened, info in _images(archives[0].parent, members):
        path, read = pathlib.PurePosixPath(info.filename), functools.partial(opened.read, info)
        images.append((path.parent, Image(f"{archive}/{path}", f"{info.filename} {info.CRC}", read)))
    return _by_class(archives[0].parent, images)


def _images(where: pathlib.Path, found: list[tuple[pathlib.PurePath, Any]]) -> list[Any]:
    """The image files among `found`, which must all lie at the same depth of folders.

    Hidden files, and files that macOS adds to zips, are skipped.
    """
    seen = [(path, file) for path, file in found if not any(part.startswith((".", "__MACOSX")) for part in path.parts)]
    images = [(path, file) for path, file in seen if path.suffix.lower() in SUFFIXES]
    others = [path for path, _ in seen if path.suffix.lower() not in SUFFIXES and len(path.parts) > 1]
    if others and images:
        warnings.warn(
            f"{len(others)} files in {where} are not read, such as {others[0]}: images end in {', '.join(SUFFIXES)}.",
            stacklevel=6,
        )
    by_depth = {len(path.parts): path for path, _ in images}
    if 1 in by_depth or len(by_depth) > 1:
        raise ValueError(
            f"The images in {where} must lie in folders of the same depth, one for each class; got "
            f"{' and '.join(str(path) for path in by_depth.values())}."
        )
    return [file for _, file in images]


def _by_class(where: pathlib.Path, images: list[tuple[pathlib.PurePath, Image]]) -> dict[str, list[Image]]:
    """Images by the names of the folders that they lie in."""
    folders: dict[str, pathlib.PurePath] = {}
    found: dict[str, list[Image]] = {}
    for folder, image in images:
        if folders.setdefault(folder.name, folder) != folder:
            raise ValueError(f"Two folders in {where} are of class {folder.name}: {folders[folder.name]} and {folder}.")
        found.setdefault(folder.name, []).append(image)
    return found


def _decoded(
    where: str,
    classes: dict[str, list[Image]],
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
    cached = cache_dir / f"images-{_FORMAT}-{image_size}-{digest.hexdigest()[:12]}.npy"
    if not cached.exists():
        decode(cached, [image for images in chosen.values() for image in images], image_size, where)
    images = np.load(cached, mmap_mode="r")
    return ImageClasses(images.reshape(len(chosen), number, image_size, image_size, 3), tuple(chosen))
