"""Sums of ellipses: their density at a point and, in closed form, along a ray."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Ellipses(NamedTuple):
    """A density in the plane: the sum of ellipses, each of constant density inside and zero outside.

    Attributes:
      centres: `[num_ellipses, 2]`.
      half_axes: The lengths of the two half axes, `[num_ellipses, 2]`.
      angles: The angle of the first axis, in radians, `[num_ellipses]`.
      densities: `[num_ellipses, channels]`; a negative density makes a hole in what is below.
    """

    centres: jax.Array
    half_axes: jax.Array
    angles: jax.Array
    densities: jax.Array


class Rays(NamedTuple):
    """Straight lines in the plane: the points `p` with `p . (cos angle, sin angle) = offset`.

    Attributes:
      angles: The angle of the normal, in radians, `[num_rays]`.
      offsets: The signed distance from the origin, `[num_rays]`.
    """

    angles: jax.Array
    offsets: jax.Array


def density(ellipses: Ellipses, points: jax.Array) -> jax.Array:
    """The density at points.

    Args:
      ellipses: What the density is the sum of.
      points: `[num_points, 2]`.
    Returns:
      `[num_points, channels]`.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> disc = jaxmaml.tasks.fields.Ellipses(jnp.zeros((1, 2)), jnp.full((1, 2), 0.5), jnp.zeros(1), jnp.ones((1, 1)))
      >>> jaxmaml.tasks.fields.density(disc, jnp.array([[0.3, 0.3], [0.4, 0.4]])).tolist()
      [[1.0], [0.0]]
    """
    offsets = points[:, None, :] - ellipses.centres[None, :, :]
    along, across = _axes(ellipses.angles)
    lengths = ellipses.half_axes[None]
    first = jnp.sum(offsets * along[None], -1) / lengths[..., 0]
    second = jnp.sum(offsets * across[None], -1) / lengths[..., 1]
    inside = jnp.square(first) + jnp.square(second) <= 1.0
    return inside.astype(ellipses.densities.dtype) @ ellipses.densities


def line_integrals(ellipses: Ellipses, rays: Rays) -> jax.Array:
    r"""The integrals of the density along rays: chord lengths times densities.

    With `a` and `b` the half axes, `s` the distance of the ray from the centre and `g^2 = a^2 cos^2 + b^2 sin^2` of the
    angle between the ray's normal and the first axis, the chord is `2 a b sqrt(g^2 - s^2) / g^2`.

    Args:
      ellipses: What the density is the sum of.
      rays: Leaves `[num_rays]`.
    Returns:
      `[num_rays, channels]`.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> disc = jaxmaml.tasks.fields.Ellipses(jnp.zeros((1, 2)), jnp.full((1, 2), 0.5), jnp.zeros(1), jnp.ones((1, 1)))
      >>> rays = jaxmaml.tasks.fields.Rays(angles=jnp.array([0.0, 1.0]), offsets=jnp.array([0.0, 0.3]))
      >>> [round(float(chord), 4) for chord in jaxmaml.tasks.fields.line_integrals(disc, rays)[:, 0]]
      [1.0, 0.8]

    References:
      Kak and Slaney, 1988, section 3.1 (parallel projections of the Shepp-Logan phantom)
    """
    normals, _ = _axes(rays.angles)
    distances = rays.offsets[:, None] - normals @ ellipses.centres.T
    turned = rays.angles[:, None] - ellipses.angles[None]
    first, second = ellipses.half_axes[None, :, 0], ellipses.half_axes[None, :, 1]
    reach = jnp.square(first * jnp.cos(turned)) + jnp.square(second * jnp.sin(turned))
    half_chords = jnp.sqrt(jnp.maximum(reach - jnp.square(distances), 0.0))
    return (2.0 * first * second * half_chords / reach) @ ellipses.densities


def random_ellipses(key: chex.PRNGKey, num_details: int, channels: int) -> Ellipses:
    """Draw a phantom: a body, and details inside it.

    The body is an ellipse round the origin with half axes from U(0.6, 0.9), and a density from U(0.3, 0.7). A detail's
    half axes are from U(0.1, 0.4) times the body's shorter one, its centre is where it lies inside the body, and its
    density is positive or negative. The density is in [0, 1] everywhere, even where all details overlap, and zero
    outside the unit disc.

    Args:
      key: The PRNG key.
      num_details: The number of ellipses beside the body.
      channels: The number of densities, such as 1 or 3 colours.
    Returns:
      `Ellipses`, the body first.
    """
    keys = iter(jax.random.split(key, 8))
    body_axes = jax.random.uniform(next(keys), (1, 2), minval=0.6, maxval=0.9)
    angles = jax.random.uniform(next(keys), (1 + num_details,), maxval=jnp.pi)
    half_axes = jax.random.uniform(next(keys), (num_details, 2), minval=0.1, maxval=0.4) * jnp.min(body_axes)
    # Uniform in half of the body: a detail of 0.4 times its shorter axis is still inside.
    radii = 0.5 * jnp.sqrt(jax.random.uniform(next(keys), (num_details, 1)))
    turns = jax.random.uniform(next(keys), (num_details,), maxval=2 * jnp.pi)
    along, across = _axes(angles[:1])
    places = body_axes * radii * _axes(turns)[0]
    centres = places[:, :1] * along + places[:, 1:] * across
    body = jax.random.uniform(next(keys), (1, channels), minval=0.3, maxval=0.7)
    raw = jax.random.uniform(next(keys), (num_details, channels), minval=-1.0)
    room = jnp.where(raw > 0, 1.0 - body, body)
    sums = jnp.where(raw > 0, jnp.sum(jnp.maximum(raw, 0.0), 0)[None], jnp.sum(jnp.maximum(-raw, 0.0), 0)[None])
    details = raw * room / jnp.maximum(sums, 1.0)
    return Ellipses(
        centres=jnp.concatenate([jnp.zeros((1, 2)), centres]),
        half_axes=jnp.concatenate([body_axes, half_axes]),
        angles=angles,
        densities=jnp.concatenate([body, details]),
    )


def _axes(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The unit vectors `[n, 2]` at the angles, and those at right angles to them."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)
