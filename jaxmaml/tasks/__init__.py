"""Task families, `sample(key) -> Task` on the device, and the data sets behind them.

`sinusoids`, `streams`, `navigation`, `episodes` and the package `fields` are the families; `arrays` makes one of NumPy
arrays, and `mixtures` makes one of several. `omniglot`, `image_folders` and `strokes` read or draw image classes, with
`files`, `images` and `splits` as their parts; `inductive` passes the support set along with each image. Begin with
`sinusoids`. The package imports the shared modules at the top of `jaxmaml`, `rl`, and `training.progress`,
`training.samplers` and `training.sources`.
"""

from jaxmaml.tasks import fields as fields
from jaxmaml.tasks import image_folders as image_folders
from jaxmaml.tasks import navigation as navigation
from jaxmaml.tasks import omniglot as omniglot
from jaxmaml.tasks import strokes as strokes
from jaxmaml.tasks.arrays import TaskSplits as TaskSplits
from jaxmaml.tasks.arrays import from_arrays as from_arrays
from jaxmaml.tasks.episodes import image_episodes as image_episodes
from jaxmaml.tasks.inductive import with_support as with_support
from jaxmaml.tasks.mixtures import mixture as mixture
from jaxmaml.tasks.sinusoids import sinusoid as sinusoid
from jaxmaml.tasks.splits import ImageClasses as ImageClasses
from jaxmaml.tasks.splits import Splits as Splits
from jaxmaml.tasks.splits import image_classes as image_classes
from jaxmaml.tasks.streams import drifting_signals as drifting_signals
from jaxmaml.training.sources import Batches as Batches
