"""Procedural characters: a stand-in for Omniglot that needs no data."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import checks
from jaxmaml.tasks.splits import ImageClasses, Splits

_MAX_STROKES = 4
_POINTS = 12  # on each stroke, joined by straight lines
_SIZE = 28


def load(
    key: chex.PRNGKey | None = None,
    *,
    num_classes: tuple[int, int, int] = (400, 50, 150),
    images_per_class: int = 20,
) -> Splits:
    """Draw characters of one to four curved strokes, each image with small variations.

    A character is a set of quadratic Bezier curves. Each drawing of it perturbs the control points and rotates,
    scales and shifts the whole. The result has the form of that of `jaxmaml.tasks.omniglot.load`.

    Args:
      key: The PRNG key; `jax.random.key(0)` by default.
      num_classes: The numbers of characters in train, valid and test.
      images_per_class: The number of drawings of each character.

    Returns:
      `Splits` of `ImageClasses`, images uint8 `[num_classes, images_per_class, 28, 28, 1]`, strokes 255 on 0.

    Raises:
      ValueError: If a count is < 1.

    Example:
      >>> import jaxmaml
      >>> splits = jaxmaml.tasks.strokes.load(num_classes=(20, 5, 5), images_per_class=4)
      >>> splits.train.images.shape
      (20, 4, 28, 28, 1)
    """
    key = jax.random.key(0) if key is None else key
    checks.prng_key(key)
    if not isinstance(num_classes, tuple) or len(num_classes) != 3:
        raise ValueError(f"`num_classes` must be three counts, for train, valid and test, got {num_classes!r}.")
    for count in num_classes:
        checks.positive_int("num_classes", count)
    checks.positive_int("images_per_class", images_per_class)
    keys = jax.random.split(key, sum(num_classes))
    images = np.asarray(_draw_characters(keys, images_per_class))
    names = tuple(f"character{index:04d}" for index in range(len(images)))
    ends = np.cumsum(num_classes)
    return Splits(*(ImageClasses(images[e - n : e], names[e - n : e]) for n, e in zip(num_classes, ends, strict=True)))


@functools.partial(jax.jit, static_argnums=1)
def _draw_characters(keys: chex.PRNGKey, images_per_class: int) -> jax.Array:
    def character(key):
        shape_key, count_key, *hand_keys = jax.random.split(key, 2 + images_per_class)
        curves = jax.random.uniform(shape_key, (_MAX_STROKES, 3, 2), minval=-0.4, maxval=0.4)
        count = jax.random.randint(count_key, (), 1, _MAX_STROKES + 1)
        return jax.lax.map(lambda k: _draw(k, curves, count), jnp.stack(hand_keys))

    return jax.lax.map(character, keys, batch_size=8)


def _draw(key: chex.PRNGKey, curves: jax.Array, count: jax.Array) -> jax.Array:
    wobble_key, turn_key, scale_key, shift_key = jax.random.split(key, 4)
    curves = curves + 0.035 * jax.random.normal(wobble_key, curves.shape)
    turn = 0.15 * jax.random.normal(turn_key)
    scale = jax.random.uniform(scale_key, (), minval=0.85, maxval=1.1)
    rotation = jnp.array([[jnp.cos(turn), -jnp.sin(turn)], [jnp.sin(turn), jnp.cos(turn)]])
    shift = 0.03 * jax.random.normal(shift_key, (1, 1, 2))
    curves = scale * curves @ rotation + shift

    t = jnp.linspace(0.0, 1.0, _POINTS)[:, None]
    weights = jnp.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)  # Bezier, [points, 3]
    points = jnp.einsum("pc,scx->spx", weights, curves)[None, None]
    starts, ends = points[..., :-1, :], points[..., 1:, :]  # [1, 1, strokes, lines, 2]

    centres = (jnp.arange(_SIZE, dtype=jnp.float32) + 0.5) / _SIZE - 0.5
    pixels = jnp.stack(jnp.meshgrid(centres, centres, indexing="ij"), -1)[:, :, None, None]
    along = ends - starts
    position = jnp.sum((pixels - starts) * along, -1) / jnp.maximum(jnp.sum(along**2, -1), 1e-9)
    nearest = starts + jnp.clip(position, 0.0, 1.0)[..., None] * along
    distance = jnp.linalg.norm(pixels - nearest, axis=-1).min(-1)  # [height, width, strokes]
    distance = jnp.where((jnp.arange(_MAX_STROKES) < count)[None, None], distance, jnp.inf).min(-1)
    ink = jnp.clip(1.5 - distance * _SIZE, 0.0, 1.0)  # about two pixels wide, with a soft edge
    return jnp.round(255 * ink).astype(jnp.uint8)[..., None]
