"""Layers that stay fast under the task axis, the models of the MAML paper, neural fields, and a model of sequences.

One model in each file: `mlp`, `conv4`, the fields `siren`, with `sine`, and `fourier_features`, and the sequence model
`gru`. `conv_block` is the block that `conv4` is made of, `layers`, `pooling`, `normalisation` and `conv` are its parts;
`example_groups` applies them to groups of examples that fit a CPU's cache, and `running_statistics` averages batch
statistics over tasks. Begin with `conv4`. The package imports the shared modules at the top of `jaxmaml`, `execution`
and `training.samplers`.
"""

from jaxmaml.nn.conv.convolution import conv_general_dilated as conv_general_dilated
from jaxmaml.nn.conv4 import Conv4 as Conv4
from jaxmaml.nn.fourier_features import FourierFeatureMLP as FourierFeatureMLP
from jaxmaml.nn.gru import GRU as GRU
from jaxmaml.nn.layers import BatchNorm as BatchNorm
from jaxmaml.nn.layers import batch_norm as batch_norm
from jaxmaml.nn.layers import inductive as inductive
from jaxmaml.nn.mlp import MLP as MLP
from jaxmaml.nn.pooling import max_pool as max_pool
from jaxmaml.nn.running_statistics import average_statistics as average_statistics
from jaxmaml.nn.siren import Siren as Siren
