"""Image data sets in folders and zips: what is read, what is refused."""

import io
import os
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
            folder = root / part / f"class{c}"
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
    assert splits.test.names == ("class0", "class1")
    assert splits.train.images.shape == (2, 3, 8, 8, 3)
    assert isinstance(splits.train.images.base, np.memmap)
    sample = jaxmaml.tasks.image_episodes(splits.train.images, num_ways=2, num_shots=1, num_queries=1)
    assert sample(jax.random.key(0)).support.inputs.shape == (2, 8, 8, 3)


def test_zips_in_parts_are_the_same(tmp_path):
    folders = make_folders(tmp_path / "data")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, members in (
        ("train-0", ["train/class0"]),
        ("train-1", ["train/class1"]),
        ("val", ["val/class0", "val/class1"]),
        ("test", ["test/class0", "test/class1"]),
    ):
        with zipfile.ZipFile(packed / f"{name}.zip", "w") as archive:
            for member in members:
                for path in sorted((folders / member).iterdir()):
                    archive.write(path, f"{member}/{path.name}")
    for ours, theirs in zip(load(packed, tmp_path), load(folders, tmp_path), strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        assert ours.names == theirs.names


def test_a_split_of_classes_resizing_and_a_fixed_number(tmp_path):
    root = make_folders(tmp_path / "data", counts=(3, 5)) / "train"
    split = {"train": ["class1"], "valid": ["class0"], "test": []}
    with pytest.raises(ValueError, match="has no images"):
        load(root, tmp_path, split=split)
    split["test"] = ["class0"]
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
    changed = root / "train" / "class0" / "image0.png"
    changed.write_bytes(image_bytes(99))
    os.utime(changed, ns=(1, 1))
    assert values(load(root, tmp_path).train)[0][0] == 99


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere", tmp_path)
    root = make_folders(tmp_path / "data", counts=(3, 2))
    with pytest.raises(ValueError, match=r"class1 has 2, class0 3\. Pass images_per_class=2"):
        load(root, tmp_path)
    with pytest.raises(ValueError, match="`images_per_class` is 3, but class class1"):
        load(root, tmp_path, images_per_class=3)
    with pytest.raises(ValueError, match="`split` must have the keys train, valid, test"):
        load(root / "train", tmp_path, split={"train": ["class0"]})
    with pytest.raises(ValueError, match=r"names classes that .* does not have: dogs"):
        load(root / "train", tmp_path, split={"train": ["dogs"], "valid": [], "test": []})
    with pytest.raises(ValueError, match="mini-ImageNet has 64 train classes, got 2"):
        image_folders.mini_imagenet(make_folders(tmp_path / "mini"), cache_dir=tmp_path / "cache")
    (root / "test" / "class0" / "image0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"image0\.png is not an image that Pillow reads"):
        load(root, tmp_path, images_per_class=2)
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "train.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"is not a zip archive: it begins with b'<html>'"):
        load(tmp_path / "zips", tmp_path)
    (tmp_path / "zips" / "train.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither train/ or train\.zip"):
        load(tmp_path / "zips", tmp_path)


def test_labelled_arrays():
    images = np.arange(12, dtype=np.uint8).reshape(6, 1, 2, 1)
    classes = jaxmaml.tasks.image_classes(images, np.array([1, 0, 1, 0, 1, 0]), names=["a", "b"])
    assert classes.images.shape == (2, 3, 1, 2, 1)
    assert classes.images[0, :, 0, 0, 0].tolist() == [2, 6, 10]
    assert classes.names == ("a", "b")
    with pytest.raises(ValueError, match="equally many images, got from 1 to 2"):
        jaxmaml.tasks.image_classes(images[:3], np.array([0, 0, 1]))
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
