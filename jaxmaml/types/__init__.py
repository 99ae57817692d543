"""The containers and protocols that every other module uses."""

from jaxmaml.types.axes import COLLECTED_BATCH as COLLECTED_BATCH
from jaxmaml.types.axes import INNER_GRADIENT as INNER_GRADIENT
from jaxmaml.types.axes import InnerRule as InnerRule
from jaxmaml.types.axes import StepLoop as StepLoop
from jaxmaml.types.axes import Supports as Supports
from jaxmaml.types.data import AdaptTrace as AdaptTrace
from jaxmaml.types.data import Batch as Batch
from jaxmaml.types.data import LossFn as LossFn
from jaxmaml.types.data import MetaInfo as MetaInfo
from jaxmaml.types.data import MetaState as MetaState
from jaxmaml.types.data import Outcome as Outcome
from jaxmaml.types.data import PyTree as PyTree
from jaxmaml.types.data import Task as Task
from jaxmaml.types.data import WeightedBatch as WeightedBatch
from jaxmaml.types.learner import MetaLearner as MetaLearner
from jaxmaml.types.learner import Spec as Spec
