"""Proto-MAML."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from jaxmaml import starts
from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes, fixed
from jaxmaml.parameter_selection import Leaves
from jaxmaml.types import InnerRule, LossFn, MetaLearner, PyTree


def proto_maml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    embed: Callable[[PyTree, Any], jax.Array],
    head: Leaves,
    scale: float = 1.0,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn features; initialise each task's linear head from class prototypes, and adapt all parameters.

    The initial head classifies by the squared distance to the mean features `c_k` of each class,
    `kernel[:, k] = 2 s c_k`, `bias[k] = -s ||c_k||^2`. The meta-gradient includes the derivative of the prototypes.
    Before the first inner step the model is a prototypical network.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`, for batches `(inputs, integer labels)`.
      inner_optimizer: As in `jaxmaml.maml`.
      outer_optimizer: The optax transformation of the meta-gradient.
      num_inner_steps: The number of inner steps in training; >= 1.
      embed: `(params, inputs) -> features [num_examples, num_features]`, the inputs of the head.
      head: The leaves of the head, a kernel `[num_features, num_ways]` and a bias `[num_ways]`.
      scale: The factor `s` of the squared distance, to be small for many features; see `jaxmaml.starts.prototypes`.
      **axes: The other axes of the family: see `jaxmaml.Axes`.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      ValueError: If `scale` is not > 0; in use, if `head` is not a kernel and a bias that fit the features.
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import functools, jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.Conv4.omniglot(num_ways=5, features=8)
      >>> learner = jaxmaml.proto_maml(
      ...     jaxmaml.cross_entropy(model.apply), optax.sgd(0.1), optax.adam(1e-3), num_inner_steps=1,
      ...     embed=functools.partial(model.apply, head=False), head="Dense_0")
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((5, 28, 28, 1))))

    References:
      Triantafillou et al., 2020, https://arxiv.org/abs/1903.03096
    """
    start = starts.prototypes(embed, head, scale)
    return make_learner(
        loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, fixed(axes, start=start), "proto_maml"
    )
