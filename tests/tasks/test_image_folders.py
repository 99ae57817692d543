"""Image data sets in folders and zips: what is read, what is refused."""

import io
import os
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import jaxmaml
from jaxmaml.tasks import image_folders
from tests.conftest import data_dir


def image_bytes(value, size=8, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def make_folders(root, counts=(3, 3)):
    """`root/part/class/image.png`; an image's value tells its part, class and number."""
    for p, part in enumerate(("train", "val", "test")):
        for c, count in enumerate(counts):
            folder = root / part / f"{part}{c}"
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"image{n}.png").write_bytes(image_bytes(50 * p + 10 * c + n))
    return root


def values(classes):
    return classes.images[:, :, 0, 0, 0].tolist()


def load(root, tmp_path, **options):
    return image_folders.load(root, image_size=8, cache_dir=tmp_path / "cache", **options)


def test_folders(tmp_path):
    splits = load(make_folders(tmp_path / "data"), tmp_path)
    assert values(splits.train) == [[0, 1, 2], [10, 11, 12]]
    assert values(splits.valid) == [[50, 51, 52], [60, 61, 62]]
    assert splits.test.names == ("test0", "test1")
    assert splits.train.images.shape == (2, 3, 8, 8, 3)
    assert isinstance(splits.train.images.base, np.memmap)
    sample = jaxmaml.tasks.image_episodes(splits.train.images, num_ways=2, num_shots=1, num_queries=1)
    assert sample(jax.random.key(0)).support.inputs.shape == (2, 8, 8, 3)


def test_zips_in_parts_are_the_same(tmp_path):
    folders = make_folders(tmp_path / "data")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, members in (
        ("train-0", ["train/train0"]),
        ("train-1", ["train/train1"]),
        ("val", ["val/val0", "val/val1"]),
        ("test", ["test/test0", "test/test1"]),
    ):
        with zipfile.ZipFile(packed / f"{name}.zip", "w") as archive:
            for member in members:
                for path in sorted((folders / member).iterdir()):
                    archive.write(path, f"{member}/{path.name}")
    for ours, theirs in zip(load(packed, tmp_path), load(folders, tmp_path), strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        assert ours.names == theirs.names


def test_a_split_of_classes_resizing_and_a_fixed_number(tmp_path):
    root = make_folders(tmp_path / "data", counts=(3, 5, 3)) / "train"
    split = {"train": ["train1"], "valid": ["train0"], "test": []}
    with pytest.raises(ValueError, match="has no images"):
        load(root, tmp_path, split=split)
    split["test"] = ["train2"]
    splits = image_folders.load(root, image_size=4, images_per_class=2, split=split, cache_dir=tmp_path / "cache")
    assert values(splits.train) == [[10, 11]]
    assert splits.train.images.shape == (1, 2, 4, 4, 3)


def test_the_cache_is_used_and_notices_changes(tmp_path):
    root = make_folders(tmp_path / "data")
    load(root, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(before) == 3
    load(root, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before
    changed = root / "train" / "train0" / "image0.png"
    changed.write_bytes(image_bytes(99))
    os.utime(changed, ns=(1, 1))
    assert values(load(root, tmp_path).train)[0][0] == 99


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere", tmp_path)
    root = make_folders(tmp_path / "data", counts=(3, 2))
    with pytest.raises(ValueError, match=r"train1 has 2, train0 3\. Pass images_per_class=2"):
        load(root, tmp_path)
    with pytest.raises(ValueError, match="`images_per_class` is 3, but class train1"):
        load(root, tmp_path, images_per_class=3)
    with pytest.raises(ValueError, match="`split` must have the keys train, valid, test"):
        load(root / "train", tmp_path, split={"train": ["train0"]})
    with pytest.raises(ValueError, match=r"names classes that .* does not have: dogs"):
        load(root / "train", tmp_path, split={"train": ["dogs"], "valid": [], "test": []})
    with pytest.raises(ValueError, match="mini-ImageNet has 64 train classes, got 2"):
        image_folders.mini_imagenet(make_folders(tmp_path / "mini"), cache_dir=tmp_path / "cache")
    (root / "test" / "test0" / "image0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"image0\.png is not an image that Pillow reads"):
        load(root, tmp_path, images_per_class=2)
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "train.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"is not a zip archive: it begins with b'<html>'"):
        load(tmp_path / "zips", tmp_path)
    (tmp_path / "zips" / "train.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither train/ or train\.zip"):
        load(tmp_path / "zips", tmp_path)


def saved(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path, **options)


def decoded(tmp_path, name, pixels, mode=None, **options):
    """One image, as `load` reads it."""
    root = make_folders(tmp_path / "data", counts=(1, 1))
    (root / "train" / "train0" / "image0.png").unlink()
    saved(root / "train" / "train0" / name, pixels, mode, **options)
    return load(root, tmp_path).train.images[0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_are_scaled(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = decoded(tmp_path, f"image.{suffix}", ramp)
    np.testing.assert_array_equal(image[..., 0], ramp >> 8)


def test_values_of_unknown_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="floating-point values, of which the range is not known"):
        decoded(tmp_path, "image.tif", np.ones((8, 8), np.float32))
    with pytest.raises(ValueError, match="values from 0 to 100000, which are not 8 or 16 bits"):
        decoded(tmp_path / "more", "image.tif", np.array([[0, 100_000]], np.int32))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    """A drawing of black ink on nothing."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    root = make_folders(tmp_path / "data", counts=(1, 1))
    path = root / "train" / "train0" / "image0.png"
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(np.repeat(np.array([[0], [1]], np.uint8), 4, 0).repeat(8, 1), "P")
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.info["transparency"] = 1
    else:
        image = image.convert(mode)
    image.save(path)
    first = load(root, tmp_path).train.images[0, 0]
    assert (first[:4] == 0).all()
    assert (first[4:] == 255).all()


def test_photographs_are_turned_as_their_exif_says(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise.
    image = decoded(tmp_path, "image.png", pixels, exif=exif)
    assert (image[:, 4:] == 255).all()
    assert (image[:, :4] == 0).all()


@pytest.mark.parametrize("suffix", ["tif", "tiff", "gif"])
def test_more_formats(tmp_path, suffix):
    assert (decoded(tmp_path, f"image.{suffix}", np.full((8, 8), 7, np.uint8)) == 7).all()


def test_files_that_are_not_read_are_told_of(tmp_path):
    root = make_folders(tmp_path / "data")
    (root / "train" / "train0" / "image9.xyz").write_bytes(b"?")
    (root / "train" / "train0" / ".DS_Store").write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"1 files in .* are not read, such as train0/image9\.xyz") as caught:
        load(root, tmp_path)
    assert len(caught) == 1


def test_images_must_lie_in_folders_of_one_depth(tmp_path):
    root = make_folders(tmp_path / "data")
    saved(root / "train" / "more" / "deeper" / "image0.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="must lie in folders of the same depth"):
        load(root, tmp_path)
    flat = tmp_path / "flat"
    for part in ("train", "val", "test"):
        saved(flat / part / "image0.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="one for each class"):
        load(flat, tmp_path)


def test_parts_must_not_share_classes(tmp_path):
    root = make_folders(tmp_path / "data", counts=(3, 3, 3))
    split = {"train": ["train0", "train1"], "valid": ["train1"], "test": ["train2"]}
    with pytest.raises(ValueError, match="1 are in train and in valid: train1"):
        load(root / "train", tmp_path, split=split)
    with pytest.raises(ValueError, match="names a class twice in 'train': train0"):
        load(root / "train", tmp_path, split={**split, "train": ["train0", "train0"]})
    (root / "val" / "val0").rename(root / "val" / "train0")
    with pytest.raises(ValueError, match="1 are in train and in valid: train0"):
        load(root, tmp_path)


def test_a_class_in_two_folders_is_refused(tmp_path):
    root = make_folders(tmp_path / "data")
    for group in ("one", "two"):
        for part in ("train", "val", "test"):
            for child in list((root / part).glob("*[01]")):
                (root / part / group).mkdir(exist_ok=True)
                for image in child.iterdir():
                    saved(root / part / group / child.name / image.name, np.zeros((8, 8, 3), np.uint8))
    for part in ("train", "val", "test"):
        for child in list((root / part).glob("*[01]")):
            shutil.rmtree(child)
    with pytest.raises(ValueError, match=r"Two folders in .* are of class train"):
        load(root, tmp_path)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folders(tmp_path / "data")
    splits = image_folders.load("~/data", image_size=8, cache_dir="~/cache")
    assert values(splits.train) == [[0, 1, 2], [10, 11, 12]]
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.slow
def test_processes_that_decode_at_once_read_the_same(tmp_path):
    """Each writes a file of its own and renames it: none reads, or is cut off from, what another one writes."""
    root = make_folders(tmp_path / "data", counts=(40, 40))
    program = (
        "import sys; from jaxmaml.tasks import image_folders;"
        "s = image_folders.load(sys.argv[1], image_size=64, cache_dir=sys.argv[2]);"
        "print(s.train.images[:, :, 0, 0, 0].astype(int).sum(), s.test.images.min())"
    )
    command = [sys.executable, "-c", program, str(root), str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, results
    # 40 images of 0, 1, ... 39 in one class and of 10 more in the other.
    assert {out.strip().splitlines()[-1] for out, _ in results} == {f"{2 * sum(range(40)) + 400} 100"}
    assert not list((tmp_path / "cache").glob("*partial*"))


def test_labelled_arrays():
    images = np.arange(12, dtype=np.uint8).reshape(6, 1, 2, 1)
    classes = jaxmaml.tasks.image_classes(images, np.array([1, 0, 1, 0, 1, 0]), names=["a", "b"])
    assert classes.images.shape == (2, 3, 1, 2, 1)
    assert classes.images[0, :, 0, 0, 0].tolist() == [2, 6, 10]
    assert classes.names == ("a", "b")
    assert classes.counts is None
    unequal = jaxmaml.tasks.image_classes(images[:3], np.array([1, 0, 1]))
    assert unequal.images[..., 0, 0, 0].tolist() == [[2, 0], [0, 4]]
    assert unequal.counts == (1, 2)
    with pytest.raises(ValueError, match="at least one image"):
        jaxmaml.tasks.image_classes(images[:0], np.zeros(0, int))
    with pytest.raises(TypeError, match="must be uint8"):
        jaxmaml.tasks.image_classes(images.astype(float), np.zeros(6, int))
    with pytest.raises(ValueError, match="with a label each"):
        jaxmaml.tasks.image_classes(images, np.zeros(5, int))


def test_real_mini_imagenet(tmp_path):
    """Counts and shapes of the test part, the smallest: all parts take minutes to decode."""
    folder = data_dir("mini-imagenet")
    classes = image_folders._part(folder, "test")
    assert len(classes) == 20
    assert {len(images) for images in classes.values()} == {300}
    few = {name: images[:5] for name, images in classes.items()}
    part = image_folders._decoded("mini-imagenet/test", few, 84, None, tmp_path)
    assert part.images.shape == (20, 5, 84, 84, 3)
    assert 80 < part.images.mean() < 160
    assert {len(image_folders._part(folder, name)) for name in ("train", "valid")} == {64, 16}
