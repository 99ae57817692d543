"""Gradient-based meta-learning as pure JAX functions."""

from jaxmaml import nn as nn
from jaxmaml import tasks as tasks
from jaxmaml.evaluation import Curve as Curve
from jaxmaml.evaluation import Evaluation as Evaluation
from jaxmaml.evaluation import evaluate as evaluate
from jaxmaml.learners.maml import maml as maml
from jaxmaml.losses import cross_entropy as cross_entropy
from jaxmaml.losses import mean_squared_error as mean_squared_error
from jaxmaml.rules import clip_by_global_norm as clip_by_global_norm
from jaxmaml.task_axis import task_mesh as task_mesh
from jaxmaml.training import NonFiniteError as NonFiniteError
from jaxmaml.training import fit as fit
from jaxmaml.types import AdaptTrace as AdaptTrace
from jaxmaml.types import Batch as Batch
from jaxmaml.types import Execution as Execution
from jaxmaml.types import InnerRule as InnerRule
from jaxmaml.types import LossFn as LossFn
from jaxmaml.types import MetaInfo as MetaInfo
from jaxmaml.types import MetaLearner as MetaLearner
from jaxmaml.types import MetaState as MetaState
from jaxmaml.types import Task as Task

__version__ = "0.1.0"
