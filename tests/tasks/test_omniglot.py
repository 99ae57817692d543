"""The Omniglot reader: on the real zips, on made-up broken ones, and over a real connection."""

import functools
import http.server
import io
import random
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxmaml.tasks import omniglot


def test_paper_split_is_a_seeded_shuffle():
    parts = omniglot.paper_split()
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [1100, 100, 423]
    names = [name for part in parts.values() for name in part]
    expected = sorted(names)
    assert len(set(expected)) == 1623
    random.Random(1).shuffle(expected)
    assert names == expected


@pytest.mark.slow
def test_real_paper_split(omniglot_splits):
    train, valid, test = omniglot_splits
    assert train.images.shape == (1100, 20, 28, 28, 1)
    assert valid.images.shape == (100, 20, 28, 28, 1)
    assert test.images.shape == (423, 20, 28, 28, 1)
    assert train.images.dtype == np.uint8
    assert (train.names, valid.names, test.names) == tuple(
        tuple(omniglot.paper_split()[name]) for name in ("train", "valid", "test")
    )
    for part in omniglot_splits:  # Strokes are white on black, and every drawing has some.
        assert 0.01 < part.images.mean() / 255 < 0.2
        assert part.images.max((2, 3, 4)).min() > 100


def test_an_image_is_the_drawing_that_its_name_says(omniglot_dir, omniglot_splits):
    name = "Greek/character01"
    part = next(part for part in omniglot_splits if name in part.names)
    with zipfile.ZipFile(omniglot_dir / "images_background.zip") as files:
        members = sorted(m for m in files.namelist() if m.startswith(f"images_background/{name}/"))
        drawing = Image.open(io.BytesIO(files.read(members[3]))).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    stored = part.images[part.names.index(name), 3, :, :, 0]
    np.testing.assert_array_equal(stored, 255 - np.asarray(drawing))
    assert len(np.unique(stored)) > 2


@pytest.mark.slow
def test_real_background_split_and_nearest(omniglot_dir, tmp_path):
    splits = omniglot.load(omniglot_dir, split="background", resampling="nearest", cache_dir=tmp_path)
    assert [len(part.images) for part in splits] == [964, 0, 659]
    assert set(np.unique(splits.test.images)) == {0, 255}
    assert {name.split("/")[0] for name in splits.train.names}.isdisjoint(n.split("/")[0] for n in splits.test.names)


def test_the_cache_is_read_and_not_shared_between_resamplings(
    omniglot_dir, omniglot_cache, omniglot_splits, tmp_path, monkeypatch
):
    (decoded,) = omniglot_cache.glob("omniglot-28-lanczos-*.npy")
    (tmp_path / decoded.name).write_bytes(decoded.read_bytes())
    monkeypatch.setattr(omniglot, "_decode", lambda *args: pytest.fail("decoded again"))
    cached = omniglot.load(omniglot_dir, cache_dir=tmp_path)
    np.testing.assert_array_equal(cached.test.images, omniglot_splits.test.images)
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        omniglot.load(omniglot_dir, resampling="nearest", cache_dir=tmp_path)


def test_unknown_choices():
    with pytest.raises(ValueError, match="`split` must be one of 'paper', 'background'"):
        omniglot.load(split="vinyals")
    with pytest.raises(ValueError, match="`resampling` must be one of 'lanczos', 'nearest'"):
        omniglot.load(resampling="bilinear")


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images_background\.zip does not exist.*download=True.*strokes"):
        omniglot.load(tmp_path)


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "images_background.zip").write_text("<html>Sign in</html>")
    with pytest.raises(ValueError, match="not a zip archive: it begins with b'<html>Sign in"):
        omniglot.load(tmp_path)


def test_a_zip_of_something_else(tmp_path):
    for name in omniglot.MD5:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as files:
            files.writestr(f"{name}/Greek/character01/1_01.png", b"")
    with pytest.raises(ValueError, match="must hold 964 characters of 20 drawings each, got 1 characters and 1"):
        omniglot.load(tmp_path)


@pytest.fixture
def server(tmp_path):
    """Serve a folder on the loopback, as the data set's own repository would."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/{{}}.zip"
        httpd.shutdown()


def test_a_download_that_is_a_web_page(server, tmp_path, monkeypatch):
    folder, url = server
    (folder / "images_background.zip").write_text("<!DOCTYPE html>Too many requests")
    monkeypatch.setattr(omniglot, "URL", url)
    with pytest.raises(ValueError, match=r"came from http.* is not a zip archive: it begins with b'<!DOCTYPE"):
        omniglot.load(tmp_path, download=True)
    assert not (tmp_path / "images_background.zip").exists()


def test_a_download_with_another_checksum(server, tmp_path, monkeypatch):
    folder, url = server
    with zipfile.ZipFile(folder / "images_background.zip", "w") as files:
        files.writestr("images_background/Greek/character01/1_01.png", b"")
    monkeypatch.setattr(omniglot, "URL", url)
    with pytest.raises(ValueError, match="hash"):
        omniglot.load(tmp_path, download=True)
    assert not (tmp_path / "images_background.zip").exists()


def test_a_download_that_arrives(server, omniglot_dir, omniglot_cache, omniglot_splits, tmp_path, monkeypatch):
    """The same code as for the official address, with the served files' own checksums."""
    import hashlib

    folder, url = server
    sums = {}
    for name in omniglot.MD5:
        data = (omniglot_dir / f"{name}.zip").read_bytes()
        (folder / f"{name}.zip").write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(omniglot, "URL", url)
    monkeypatch.setattr(omniglot, "MD5", sums)
    splits = omniglot.load(tmp_path, cache_dir=omniglot_cache, download=True)
    for name in omniglot.MD5:
        assert (tmp_path / f"{name}.zip").read_bytes() == (folder / f"{name}.zip").read_bytes()
    np.testing.assert_array_equal(splits.valid.images, omniglot_splits.valid.images)
