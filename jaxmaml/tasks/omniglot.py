"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings of each.

Lake, Salakhutdinov and Tenenbaum, 2015, https://doi.org/10.1126/science.aab3050
"""

import importlib.resources
import io
import json
import pathlib
import zipfile

import numpy as np

from jaxmaml import checks
from jaxmaml.tasks import files
from jaxmaml.tasks.splits import ImageClasses, Splits
from jaxmaml.training.progress import track

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{}.zip"
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20
SIZE = 28


def load(
    data_dir: str | pathlib.Path | None = None,
    *,
    split: str = "paper",
    resampling: str = "lanczos",
    download: bool = False,
    cache_dir: str | pathlib.Path | None = None,
) -> Splits:
    """Read Omniglot from its two official zips, as 28 x 28 images with strokes of 255 on 0.

    Args:
      data_dir: Folder that holds `images_background.zip` and `images_evaluation.zip`; where to put them
        with `download`. Defaults to `cache_dir`.
      split: `"paper"`: 1100 / 100 / 423 characters of all alphabets, a fixed shuffle that is part of the
        package (MAML's sizes; its own order depended on a file system). `"background"`: Lake's 964 training
        and 659 test characters, of different alphabets, without a validation set.
      resampling: From 105 x 105 one-bit drawings: `"lanczos"`, anti-aliased with grey levels; or
        `"nearest"`, one-bit, which is what the original MAML code's resize came to.
      download: Fetch missing zips from the data set's own repository (14 MB), with a checksum.
      cache_dir: Where the decoded array is kept as .npy (25 MB), so that the next call is quick; defaults to
        the user's cache folder.

    Returns:
      `Splits` of `ImageClasses`, images uint8 `[num_classes, 20, 28, 28, 1]`.

    Raises:
      ValueError: If `split` or `resampling` is unknown, or a file is not the zip that it should be.
      FileNotFoundError: If a zip is missing and `download` is off.
      ImportError: Without the extra `data` (Pillow and pooch).

    Example:
      splits = jaxmaml.tasks.omniglot.load("path/to/omniglot")
      splits.train.images.shape  # (1100, 20, 28, 28, 1)
    """
    checks.one_of("split", split, ("paper", "background"))
    checks.one_of("resampling", resampling, ("lanczos", "nearest"))
    cache_dir = files.folder(cache_dir) if cache_dir else files.default_cache()
    data_dir = files.folder(data_dir) if data_dir else cache_dir
    archives = {name: _find_archive(data_dir, name, download) for name in MD5}
    members = {name: _drawings(archive) for name, archive in archives.items()}
    names = sorted(character for drawings in members.values() for character in drawings)

    cached = cache_dir / f"omniglot-{SIZE}-{resampling}-{files.fingerprint(archives.values())}.npy"
    if cached.exists():
        images = np.load(cached)
    else:
        decoded = {}
        for name, archive in archives.items():
            decoded |= _decode(archive, members[name], resampling)
        images = np.stack([decoded[name] for name in names])
        with files.written(cached) as partial:
            np.save(partial, images)
    return _split(images, names, split, members)


def paper_split() -> dict[str, list[str]]:
    """Names of the characters in each part of the `"paper"` split."""
    return json.loads(importlib.resources.files("jaxmaml.tasks").joinpath("omniglot_paper_split.json").read_text())


def _find_archive(data_dir: pathlib.Path, name: str, download: bool) -> pathlib.Path:
    path = data_dir / f"{name}.zip"
    if not path.exists() and download:
        files.require("pooch").retrieve(
            URL.format(name), f"md5:{MD5[name]}", fname=path.name, path=data_dir, downloader=_download
        )
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Put the data set's images_background.zip and images_evaluation.zip into "
            "`data_dir`, pass download=True, or use jaxmaml.tasks.strokes.load, which needs no data."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(files.not_a_zip(path, path))
    return path


def _download(url: str, output_file: str, pooch) -> None:
    """Fetch with progress, and look before pooch's checksum does: a web page deserves a better word."""
    files.require("pooch").HTTPDownloader(progressbar=True)(url, output_file, pooch)
    if not zipfile.is_zipfile(output_file):
        raise ValueError(files.not_a_zip(url, output_file))


def _drawings(archive: pathlib.Path) -> dict[str, list[str]]:
    """Members of the archive by character, `Alphabet/characterNN`."""
    found: dict[str, list[str]] = {}
    with zipfile.ZipFile(archive) as opened:
        for member in sorted(opened.namelist()):
            if member.endswith(".png") and not member.startswith("__MACOSX"):
                _, alphabet, character, _ = member.split("/")
                found.setdefault(f"{alphabet}/{character}", []).append(member)
    if len(found) != CHARACTERS[archive.stem] or any(len(drawings) != DRAWINGS for drawings in found.values()):
        raise ValueError(
            f"{archive} must hold {CHARACTERS[archive.stem]} characters of {DRAWINGS} drawings each, "
            f"got {len(found)} characters and {sum(map(len, found.values()))} drawings."
        )
    return found


def _decode(archive: pathlib.Path, members: dict[str, list[str]], resampling: str) -> dict[str, np.ndarray]:
    image = files.require("PIL.Image")

    def read(member: str) -> np.ndarray:
        drawing = image.open(io.BytesIO(opened.read(member)))
        if resampling == "nearest":
            small = drawing.resize((SIZE, SIZE), image.Resampling.NEAREST).convert("L")
        else:  # A one-bit image would be resized by nearest neighbour whatever is asked for.
            small = drawing.convert("L").resize((SIZE, SIZE), image.Resampling.LANCZOS)
        return 255 - np.asarray(small, np.uint8)[..., None]

    with zipfile.ZipFile(archive) as opened:
        described = track(members.items(), f"decoding {archive.name}", len(members))
        return {character: np.stack([read(m) for m in drawings]) for character, drawings in described}


def _split(images: np.ndarray, names: list[str], split: str, members: dict[str, dict]) -> Splits:
    if split == "paper":
        parts = paper_split()
    else:
        background, evaluation = (sorted(members[name]) for name in ("images_background", "images_evaluation"))
        parts = {"train": background, "valid": [], "test": evaluation}
    place = {name: index for index, name in enumerate(names)}

    def part(chosen: list[str]) -> ImageClasses:
        return ImageClasses(images[[place[name] for name in chosen]] if chosen else images[:0], tuple(chosen))

    return Splits(**{name: part(chosen) for name, chosen in parts.items()})
