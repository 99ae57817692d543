"""Signals to be fitted by neural fields: images, and phantoms whose line integrals are known.

`image_fields` makes tasks of images, `phantom_fields` of random ellipses, and `tomography` of what parallel beams
measure of them; `ellipses` has their densities and line integrals. Begin with `image_fields`.
"""

from jaxmaml.tasks.fields.ellipses import Ellipses as Ellipses
from jaxmaml.tasks.fields.ellipses import Rays as Rays
from jaxmaml.tasks.fields.ellipses import density as density
from jaxmaml.tasks.fields.ellipses import line_integrals as line_integrals
from jaxmaml.tasks.fields.ellipses import random_ellipses as random_ellipses
from jaxmaml.tasks.fields.image_fields import images as images
from jaxmaml.tasks.fields.image_fields import pixel_centres as pixel_centres
from jaxmaml.tasks.fields.phantom_fields import phantoms as phantoms
from jaxmaml.tasks.fields.tomography import integrated as integrated
from jaxmaml.tasks.fields.tomography import projections as projections
