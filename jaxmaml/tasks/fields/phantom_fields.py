"""Random phantoms as functions from coordinates to densities, drawn on the device."""

from collections.abc import Callable

import chex
import jax

from jaxmaml import checks
from jaxmaml.tasks.fields.ellipses import density, random_ellipses
from jaxmaml.tasks.fields.image_fields import fitting_task, pixel_centres, point_counts
from jaxmaml.types import Batch, Task


def phantoms(
    size: int = 32,
    *,
    num_details: int = 6,
    channels: int = 1,
    num_points: int | None = None,
    num_queries: int | None = None,
) -> Callable[[chex.PRNGKey], Task]:
    """Build a sampler of random phantoms as images, for which no data is needed.

    A phantom is a sum of ellipses, as the Shepp-Logan phantom is: a body, and details of higher or lower density inside
    it (`random_ellipses`). A task is a new one, seen at the centres of `size * size` pixels. Support and query are
    those of `tasks.fields.images`.

    Args:
      size: The number of pixels along each side.
      num_details: The number of ellipses inside the body; >= 0.
      channels: The number of densities at each point, each with its own values: 3 for a coloured image.
      num_points: The number of support points; `None` for all.
      num_queries: The number of query points; `None` for all.

    Returns:
      `sample(key) -> Task` of `Batch(coordinates [num_points, 2], densities [num_points, channels])`, coordinates as in
      `pixel_centres`, densities in [0, 1]; pure, for use inside `jit` and `vmap`.

    Raises:
      ValueError: If a count is too small, or more points are asked for than there are.

    Example:
      >>> import jax, jaxmaml
      >>> sample = jaxmaml.tasks.fields.phantoms(size=16)
      >>> task = sample(jax.random.key(0))
      >>> task.support.inputs.shape, task.support.targets.shape
      ((256, 2), (256, 1))

    References:
      Shepp and Logan, 1974, https://doi.org/10.1109/TNS.1974.6499235
      Tancik et al., 2021, https://arxiv.org/abs/2012.02189 (random variants of it, 256 x 256)
    """
    checks.positive_int("size", size)
    checks.positive_int("num_details", num_details, at_least=0)
    checks.positive_int("channels", channels)
    counts = point_counts(size * size, num_points, num_queries)

    def sample(key: chex.PRNGKey) -> Task:
        phantom_key, point_key = jax.random.split(key)
        points = pixel_centres(size, size)
        densities = density(random_ellipses(phantom_key, num_details, channels), points)
        return fitting_task(Batch(points, densities), point_key, counts)

    return sample
