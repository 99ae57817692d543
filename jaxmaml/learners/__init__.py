"""One factory a file; each picks a point on the axes of the family."""

from jaxmaml.learners.maml import maml as maml
