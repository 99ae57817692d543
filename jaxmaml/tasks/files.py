"""Archives, caches and optional packages of the data set readers."""

import contextlib
import hashlib
import importlib
import os
import pathlib
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import a module that the extra `data` brings, such as `"pooch"` or `"PIL.Image"`.

    Raises:
      ImportError: If it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"Reading this data set needs {module}: pip install 'jaxmaml[data]'") from error


def default_cache() -> pathlib.Path:
    """The folder where decoded data sets are kept: pooch's cache for `jaxmaml`, of this user on this system.

    Raises:
      ImportError: If pooch is not installed.
    """
    return pathlib.Path(require("pooch").os_cache("jaxmaml"))


def fingerprint(archives: Iterable[pathlib.Path]) -> str:
    """A digest of the names and CRCs of the files in zip archives, which does not depend on the zip program."""
    digest = hashlib.sha256()
    for archive in archives:
        with zipfile.ZipFile(archive) as files:
            for info in sorted(files.infolist(), key=lambda info: info.filename):
                digest.update(f"{info.filename}:{info.CRC}\n".encode())
    return digest.hexdigest()[:12]


def not_a_zip(source, path) -> str:
    """The error message for a file that should have been a zip archive."""
    with open(path, "rb") as file:
        return f"What came from {source} is not a zip archive: it begins with {file.read(40)!r}."


def folder(path: str | os.PathLike) -> pathlib.Path:
    """`path`, with a leading `~` replaced by the user's home folder."""
    return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end.

    So an interrupted run leaves no half file, nor two runs or threads at once a mixed one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
