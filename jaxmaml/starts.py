"""Functions of the initial parameters and the support, from whose values adaptation to a task starts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml import checks, parameter_selection
from jaxmaml.losses import examples
from jaxmaml.parameter_selection import Leaves
from jaxmaml.types import PyTree

#: `(params, support) -> params`.
Start = Callable[[PyTree, Any], PyTree]


def zeros(where: Leaves) -> Start:
    """Build a start in which the leaves `where` are zero and the others are the initial parameters (CAVIA's context).

    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> jaxmaml.starts.zeros("context")({"w": jnp.ones(2), "context": jnp.ones(3)}, None)["context"].tolist()
      [0.0, 0.0, 0.0]
    """

    def start(params, support):
        mask = parameter_selection.select(params, where, "where")
        return jax.tree.map(lambda m, leaf: jnp.zeros_like(leaf) if m else leaf, mask, params)

    return start


def prototypes(embed: Callable[[PyTree, Any], jax.Array], head: Leaves, scale: float = 1.0) -> Start:
    r"""Build a start whose linear head classifies by the squared distance to class prototypes (Proto-MAML).

    With `c_k` the mean embedding of class `k`'s support, `-s ||x - c_k||^2 = 2 s c_k . x - s ||c_k||^2 + const`: the
    head is `kernel[:, k] = 2 s c_k`, `bias[k] = -s ||c_k||^2`. The meta-gradient includes the derivative of the head
    with respect to the body.

    Args:
      embed: `(params, inputs) -> features [num_examples, num_features]`, the inputs of the head.
      head: The leaves of the head, a kernel `[num_features, num_ways]` and a bias `[num_ways]`; their learned
        values have no effect.
      scale: The factor `s` of the squared distance. Distances grow with the number of features, so that with many
        features and a scale of 1 the first predictions are overconfident.
    Returns:
      `(params, support) -> params`, for a support `(inputs, integer labels)`, or a `WeightedBatch`, of which prototypes
      are weighted means. A class without an example has the origin as its prototype.
    Raises:
      ValueError: If `scale` is not > 0; in use, if the head is not such a pair.
    References:
      Triantafillou et al., 2020, https://arxiv.org/abs/1903.03096; Snell et al., 2017,
      https://arxiv.org/abs/1703.05175; for the scale, Oreshkin et al., 2018, https://arxiv.org/abs/1805.10123
    """
    checks.function("embed", embed)
    checks.positive("scale", scale)

    def start(params, support):
        inputs, labels, weights = examples(support)
        features = embed(params, inputs)
        mask = parameter_selection.select(params, head, "head")
        shapes = sorted((leaf.shape for leaf in jax.tree.leaves(parameter_selection.split(params, mask)[0])), key=len)
        if [len(shape) for shape in shapes] != [1, 2] or shapes[1] != (features.shape[-1], shapes[0][0]):
            raise ValueError(
                f"`head` must be a kernel [{features.shape[-1]}, num_ways] and a bias [num_ways], got shapes {shapes}."
            )
        members = jax.nn.one_hot(labels, shapes[0][0], dtype=features.dtype)
        if weights is not None:
            members = members * weights.astype(features.dtype)[:, None]
        counts = jnp.sum(members, 0)
        counts = jnp.where(counts > 0, counts, 1.0)
        centres = members.T @ features / counts[:, None]
        new = {2: 2.0 * scale * centres.T, 1: -scale * jnp.sum(jnp.square(centres), -1)}
        return jax.tree.map(lambda m, leaf: new[leaf.ndim].astype(leaf.dtype) if m else leaf, mask, params)

    return start
