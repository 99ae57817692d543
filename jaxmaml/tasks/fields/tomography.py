"""Phantoms seen through parallel beams: a field is to be found from its line integrals."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.losses import Apply
from jaxmaml.tasks.fields.ellipses import Rays, density, line_integrals, random_ellipses
from jaxmaml.tasks.fields.image_fields import centres, pixel_centres
from jaxmaml.types import Batch, PyTree, Task


def projections(
    size: int = 32,
    *,
    num_angles: int = 8,
    num_rays: int = 32,
    query: str = "image",
    num_details: int = 6,
    channels: int = 1,
) -> Callable[[chex.PRNGKey], Task]:
    r"""Build a sampler of computed-tomography tasks: a random phantom, measured from a few directions.

    The support has the integrals of the phantom's density along `num_rays` parallel rays at each of `num_angles`
    angles, `(k + u) pi / num_angles` with `u` from U(0, 1) drawn for the task; they are exact (`line_integrals`).
    The query is what was to be found, the densities at the centres of the pixels, or projections from as many other
    angles. Far fewer rays than pixels leave the image undetermined: what phantoms have in common has to come from the
    start.

    The loss integrates the field along the rays: `jaxmaml.reconstruction(tasks.fields.integrated(model.apply))`.

    The paper's set-up: phantoms of 256 x 256, 20 random angles in training, 256 Fourier features and four hidden
    layers of 256, Reptile with 12 steps of SGD at a rate of 10 (on the mean over a ray, not its integral), outer Adam
    at 5e-5.

    Args:
      size: The number of pixels along each side of the query image.
      num_angles: The number of projections in the support.
      num_rays: The number of rays of a projection, spread evenly over offsets in [-1, 1].
      query: `"image"` or `"projections"`.
      num_details: As in `tasks.fields.phantoms`.
      channels: As in `tasks.fields.phantoms`.

    Returns:
      `sample(key) -> Task` with a support of `Batch(Rays, integrals [num_angles * num_rays, channels])`, ordered by
      angle, and a query of `Batch(coordinates [size * size, 2], densities [size * size, channels])`, or of the same
      form as the support; pure, for use inside `jit` and `vmap`.

    Raises:
      ValueError: If a count is too small, or `query` is neither of the two.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> fields = jaxmaml.tasks.fields
      >>> model = jaxmaml.nn.FourierFeatureMLP((16, 1), num_frequencies=8)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
      >>> task = fields.projections(num_angles=4)(jax.random.key(1))
      >>> task.support.targets.shape, task.query.targets.shape
      ((128, 1), (1024, 1))
      >>> loss, aux = jaxmaml.reconstruction(fields.integrated(model.apply))(params, task.support)
      >>> loss.shape
      ()

    References:
      Tancik et al., 2021, section 4.2, https://arxiv.org/abs/2012.02189
    """
    checks.positive_int("size", size)
    checks.positive_int("num_angles", num_angles)
    checks.positive_int("num_rays", num_rays)
    checks.one_of("query", query, ("image", "projections"))
    checks.positive_int("num_details", num_details, at_least=0)
    checks.positive_int("channels", channels)

    def measured(key, ellipses):
        angles = (jnp.arange(num_angles) + jax.random.uniform(key)) * (jnp.pi / num_angles)
        rays = Rays(jnp.repeat(angles, num_rays), jnp.tile(centres(num_rays), num_angles))
        return Batch(rays, line_integrals(ellipses, rays))

    def sample(key: chex.PRNGKey) -> Task:
        phantom_key, support_key, query_key = jax.random.split(key, 3)
        ellipses = random_ellipses(phantom_key, num_details, channels)
        if query == "projections":
            return Task(measured(support_key, ellipses), measured(query_key, ellipses))
        points = pixel_centres(size, size)
        return Task(measured(support_key, ellipses), Batch(points, density(ellipses, points)))

    return sample


def integrated(apply: Apply, *, num_samples: int = 32) -> Apply:
    r"""Make a field's `apply` integrate along its inputs where these are `Rays`, and be itself where they are points.

    The integral is over the unit disc, by the midpoint rule: with `h = sqrt(1 - offset^2)` half the length of the ray
    in the disc, `2 h` times the mean of the field at `num_samples` points.

    Args:
      apply: `(params, points [num_points, 2]) -> values [num_points, channels]`.
      num_samples: The number of points on a ray.
    Returns:
      `(params, inputs) -> values`, for `Rays` of `[num_rays]` or points `[num_points, 2]`: the `apply` of a loss whose
      support has rays and whose query may have points.
    Raises:
      ValueError: If `num_samples` < 1.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> ones = jaxmaml.tasks.fields.integrated(lambda params, points: jnp.ones((points.shape[0], 1)))
      >>> rays = jaxmaml.tasks.fields.Rays(angles=jnp.zeros(2), offsets=jnp.array([0.0, 0.6]))
      >>> [round(float(length), 4) for length in ones(None, rays)[:, 0]]
      [2.0, 1.6]
    """
    checks.function("apply", apply)
    checks.positive_int("num_samples", num_samples)

    def apply_or_integrate(params: PyTree, inputs: Rays | jax.Array) -> jax.Array:
        if not isinstance(inputs, Rays):
            return apply(params, inputs)
        cos, sin = jnp.cos(inputs.angles)[:, None], jnp.sin(inputs.angles)[:, None]
        offsets = inputs.offsets[:, None]
        half = jnp.sqrt(jnp.maximum(1.0 - jnp.square(offsets), 0.0))
        along = half * centres(num_samples)[None].astype(half.dtype)
        points = jnp.stack([offsets * cos - along * sin, offsets * sin + along * cos], axis=-1)
        values = apply(params, points.reshape(-1, 2)).reshape(*along.shape, -1)
        return 2.0 * half * jnp.mean(values, axis=1)

    return apply_or_integrate
