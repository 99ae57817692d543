"""Images as functions from coordinates to colours."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import checks
from jaxmaml.types import Batch, Task


def images(
    images: jax.Array | np.ndarray, *, num_points: int | None = None, num_queries: int | None = None
) -> jax.tree_util.Partial:
    """Build a sampler of images, each a task: the colours at all pixels, as a function of the coordinates.

    A task is one image, drawn uniformly. Support and query both have all of its pixels in order of rows, as in the
    papers: what is to be learned is a start from which a signal is *fitted* in few steps. With fewer points, support
    and query are drawn afresh for each task, independently of each other, without replacement. To draw other points
    at each inner step instead, keep all of them here and give the learner `supports=jaxmaml.supports.minibatches(n)`.

    The papers' set-ups: faces of 178 x 178 with all 31,684 points, a SIREN of width 256 with `w0` = 200, MAML with two
    steps of SGD at 0.01, outer Adam at 1e-5, 3 images an outer step, 150,000 steps (Tancik et al., 2021); functa
    adapts modulations by three steps with learned rates, 16 images an outer step.

    Args:
      images: uint8 `[num_images, height, width, channels]`.
      num_points: The number of support points; `None` for all.
      num_queries: The number of query points; `None` for all.

    Returns:
      `sample(key) -> Task` of `Batch(coordinates [num_points, 2], colours [num_points, channels])`, coordinates as in
      `pixel_centres` and colours in [0, 1], both float32. As that of `image_episodes` it is a pytree whose leaves are
      the images.

    Raises:
      TypeError: If `images` is not a uint8 array.
      ValueError: If its rank is not 4, or more points are asked for than there are.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> sample = jaxmaml.tasks.fields.images(jnp.zeros((10, 32, 32, 3), jnp.uint8), num_points=256)
      >>> task = jax.jit(sample)(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((256, 2), (1024, 3))

    References:
      Tancik et al., 2021, https://arxiv.org/abs/2012.02189
      Dupont et al., 2022, https://arxiv.org/abs/2201.12204 (functa)
    """
    if not isinstance(images, (jax.Array, np.ndarray)) or images.dtype != jnp.uint8:
        raise TypeError(f"`images` must be a uint8 array, got {getattr(images, 'dtype', type(images).__name__)}.")
    if images.ndim != 4:
        raise ValueError(f"`images` must be [num_images, height, width, channels], got shape {tuple(images.shape)}.")
    checks.batch("images", images)
    counts = point_counts(images.shape[1] * images.shape[2], num_points, num_queries)
    return jax.tree_util.Partial(functools.partial(_draw, counts=counts), jnp.asarray(images))


def pixel_centres(height: int, width: int) -> jax.Array:
    """The coordinates of an image's pixels, `[height * width, 2]`, in order of rows.

    The image covers [-1, 1] in both directions, the first coordinate from left to right and the second from top to
    bottom. The centre of the first of `n` pixels is at `1 / n - 1` and that of the last at `1 - 1 / n`. For a picture,
    reshape the values at these points to `[height, width, channels]`.

    Example:
      >>> import jaxmaml
      >>> jaxmaml.tasks.fields.pixel_centres(1, 2).tolist()
      [[-0.5, 0.0], [0.5, 0.0]]
    """
    checks.positive_int("height", height)
    checks.positive_int("width", width)
    down, right = jnp.meshgrid(centres(height), centres(width), indexing="ij")
    return jnp.stack([right, down], axis=-1).reshape(-1, 2)


def centres(number: int) -> jax.Array:
    """The centres of `number` equal parts of [-1, 1]."""
    return (2.0 * jnp.arange(number) + 1.0) / number - 1.0


def point_counts(available: int, num_points: int | None, num_queries: int | None) -> tuple[int | None, int | None]:
    """Check the numbers of points of support and query against those that there are."""
    for name, count in (("num_points", num_points), ("num_queries", num_queries)):
        if count is not None and checks.positive_int(name, count) > available:
            raise ValueError(f"`{name}` must be at most the number of pixels, {available}, got {count}.")
    return num_points, num_queries


def fitting_task(field: Batch, key: chex.PRNGKey, counts: tuple[int | None, int | None]) -> Task:
    """The task of fitting `field`: support and query have all of its points, or as many of them as `counts` say."""

    def part(key, count):
        if count is None:
            return field
        places = jax.random.permutation(key, field.targets.shape[0])[:count]
        return jax.tree.map(lambda leaf: leaf[places], field)

    return Task(*map(part, jax.random.split(key), counts))


def _draw(images, key, *, counts):
    image_key, point_key = jax.random.split(key)
    image = images[jax.random.randint(image_key, (), 0, images.shape[0])]
    height, width, channels = image.shape
    colours = image.reshape(-1, channels).astype(jnp.float32) / 255.0
    return fitting_task(Batch(pixel_centres(height, width), colours), point_key, counts)
