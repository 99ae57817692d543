"""The algorithms, one factory in each file; each fixes some of the axes in `options` and leaves the others free.

Begin with `maml`, which fixes none. The package imports the modules at the top of
`jaxmaml`, `rules`, and `core.learner`, where every factory ends; no file imports a sibling.
"""

from jaxmaml.learners.anil import anil as anil
from jaxmaml.learners.bayesian_maml import bayesian_maml as bayesian_maml
from jaxmaml.learners.boil import boil as boil
from jaxmaml.learners.cavia import cavia as cavia
from jaxmaml.learners.es_maml import es_maml as es_maml
from jaxmaml.learners.fomaml import fomaml as fomaml
from jaxmaml.learners.imaml import imaml as imaml
from jaxmaml.learners.joint_training import joint_training as joint_training
from jaxmaml.learners.maml import maml as maml
from jaxmaml.learners.maml_plus_plus import maml_plus_plus as maml_plus_plus
from jaxmaml.learners.meta_curvature import meta_curvature as meta_curvature
from jaxmaml.learners.meta_sgd import meta_sgd as meta_sgd
from jaxmaml.learners.proto_maml import proto_maml as proto_maml
from jaxmaml.learners.reptile import reptile as reptile
from jaxmaml.learners.warp_maml import warp_maml as warp_maml
