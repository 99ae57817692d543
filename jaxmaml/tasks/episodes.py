"""Few-shot classification episodes, drawn on the device from a class-indexed array of images."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import checks
from jaxmaml.tasks.splits import ImageClasses
from jaxmaml.types import Batch, Task


def image_episodes(
    images: jax.Array | np.ndarray | ImageClasses,
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    rotate: bool = False,
) -> jax.tree_util.Partial:
    """Build a sampler of N-way K-shot tasks.

    An episode has `num_ways` distinct classes in random order, labelled 0, 1, ... in that order, and `num_shots` +
    `num_queries` distinct images of each, so that no image is in both support and query. Pixels are scaled to [0, 1] in
    float32.

    Args:
      images: uint8 `[num_classes, images_per_class, height, width, channels]`; or `ImageClasses`, of which each class
        has its own number of images if they have `counts`.
      num_ways: The number of classes in a task, N.
      num_shots: The number of support images of each class, K.
      num_queries: The number of query images of each class.
      rotate: Rotate each class of a task, support and query alike, by a random multiple of 90 degrees, as in the MAML
        paper's Omniglot tasks, also at test. Needs square images.

    Returns:
      `sample(key) -> Task` of `Batch(inputs [N * K, height, width, channels], targets [N * K])`, sorted by label. It is
      pure, for use inside `jit` and `vmap`, and a pytree whose leaves are the images: pass it to a jitted function as
      an argument, as `jaxmaml.fit` does, so that they are not constants of the compiled program.

    Raises:
      TypeError: If `images` is not a uint8 array.
      ValueError: If its rank is not 5, or it has too few classes or images for the task asked for.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> images = jnp.zeros((20, 10, 28, 28, 1), jnp.uint8)
      >>> sample = jaxmaml.tasks.image_episodes(images, num_ways=5, num_shots=1, num_queries=2)
      >>> task = jax.jit(sample)(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.tolist()
      ((5, 28, 28, 1), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])

    References:
      Vinyals et al., 2016, https://arxiv.org/abs/1606.04080
      Santoro et al., 2016, https://arxiv.org/abs/1605.06065 (rotations)
    """
    counts = None
    if isinstance(images, ImageClasses):
        images, counts = images.images, images.counts
    if not isinstance(images, (jax.Array, np.ndarray)) or images.dtype != jnp.uint8:
        raise TypeError(f"`images` must be a uint8 array, got {getattr(images, 'dtype', type(images).__name__)}.")
    if images.ndim != 5:
        raise ValueError(
            "`images` must be [num_classes, images_per_class, height, width, channels], "
            f"got shape {tuple(images.shape)}."
        )
    checks.batch("images", images)
    checks.positive_int("num_ways", num_ways)
    checks.positive_int("num_shots", num_shots)
    checks.positive_int("num_queries", num_queries)
    num_classes, images_per_class, height, width, _ = images.shape
    if num_ways > num_classes:
        raise ValueError(f"`num_ways` must be at most the number of classes, {num_classes}, got {num_ways}.")
    if counts is not None:
        if len(counts) != num_classes or max(counts) > images_per_class or min(counts) < 1:
            raise ValueError(
                f"`images.counts` must have a number from 1 to {images_per_class} for each of {num_classes} classes, "
                f"got {counts}."
            )
        images_per_class = min(counts)
    if num_shots + num_queries > images_per_class:
        raise ValueError(
            f"`num_shots` + `num_queries` must be at most the images of a class, {images_per_class}, "
            f"got {num_shots} + {num_queries}."
        )
    if rotate and height != width:
        raise ValueError(f"`rotate` needs square images, got {height} x {width}.")
    draw = functools.partial(_draw, num_ways=num_ways, num_shots=num_shots, num_queries=num_queries, rotate=rotate)
    if counts is None or min(counts) == images.shape[1]:
        return jax.tree_util.Partial(draw, jnp.asarray(images), None)
    return jax.tree_util.Partial(draw, jnp.asarray(images), jnp.asarray(counts))


def _draw(images, counts, key, *, num_ways, num_shots, num_queries, rotate):
    class_key, image_key, turn_key = jax.random.split(key, 3)
    classes = _distinct(class_key, images.shape[0], num_ways, images.shape[0])
    sizes = images.shape[1] if counts is None else counts[classes]
    picks = jax.vmap(
        lambda k, size: _distinct(k, size, num_shots + num_queries, images.shape[1]),
        in_axes=(0, None if counts is None else 0),
    )(jax.random.split(image_key, num_ways), sizes)
    episode = images[classes[:, None], picks]
    if rotate:
        turns = jax.random.randint(turn_key, (num_ways,), 0, 4)
        turned = jnp.stack([jnp.rot90(episode, turn, axes=(2, 3)) for turn in range(4)])
        episode = turned[turns, jnp.arange(num_ways)]
    inputs = episode.astype(jnp.float32) / 255.0
    labels = jnp.arange(num_ways)

    def batch(part):
        return Batch(part.reshape(-1, *part.shape[2:]), jnp.repeat(labels, part.shape[1]))

    return Task(support=batch(inputs[:, :num_shots]), query=batch(inputs[:, num_shots:]))


def _distinct(key: chex.PRNGKey, size: int | jax.Array, count: int, capacity: int) -> jax.Array:
    """The first `count` entries of a random permutation of `range(size)`, by that many swaps (Fisher and Yates).

    `size` may be traced, and is at most `capacity`.

    `jax.random.choice(replace=False)` sorts all of `range(size)`, which is forty times slower for 5 of 1100.
    """
    places = jnp.arange(count)
    partners = jax.random.randint(key, (count,), places, size)

    def swap(order, pair):
        here, there = order[pair[0]], order[pair[1]]
        return order.at[pair[1]].set(here).at[pair[0]].set(there), there

    return jax.lax.scan(swap, jnp.arange(capacity), (places, partners))[1]
