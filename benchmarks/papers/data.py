"""The data of a recipe: a real data set, or procedural characters in its form."""

import pathlib

import jaxmaml
from benchmarks.papers.recipes import Recipe


def load(recipe: Recipe, data_dir: pathlib.Path | None) -> jaxmaml.tasks.Splits:
    if data_dir is not None and recipe.dataset == "omniglot":
        return jaxmaml.tasks.omniglot.load(data_dir)
    if data_dir is not None:
        return jaxmaml.tasks.image_folders.mini_imagenet(data_dir)
    splits = jaxmaml.tasks.strokes.load(images_per_class=30)
    if recipe.dataset == "omniglot":
        return splits
    return jaxmaml.tasks.Splits(*(_enlarged(part) for part in splits))


def _enlarged(classes: jaxmaml.tasks.ImageClasses) -> jaxmaml.tasks.ImageClasses:
    """Procedural characters in the form of mini-ImageNet: 84 x 84, three channels."""
    images = classes.images[:60].repeat(3, axis=2).repeat(3, axis=3).repeat(3, axis=4)
    return jaxmaml.tasks.ImageClasses(images, classes.names[:60])
