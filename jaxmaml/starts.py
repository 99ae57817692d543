"""Functions of the initial parameters, the support and a key, from whose values adaptation to a task starts."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmaml import checks, parameter_selection
from jaxmaml.losses import examples
from jaxmaml.parameter_selection import Leaves
from jaxmaml.types import PyTree

#: `(params, support, key) -> params`; a function that draws nothing may leave out `key`.
Start = Callable[..., PyTree]


class Resizing(NamedTuple):
    """A start whose parameters may be of other sizes than the initial parameters."""

    start: Start

    def __call__(self, *args):
        return self.start(*args)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of `start`, so that one which draws nothing needs no key."""
        return inspect.signature(self.start)


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


def noise(std: float, leaves: Leaves = None) -> Start:
    """Build a start that adds normal noise of standard deviation `std` to the leaves, drawn for each task.

    Args:
      std: The standard deviation; >= 0.
      leaves: The leaves that get noise; all by default.
    Returns:
      `(params, support, key) -> params`, which needs a key.
    Raises:
      ValueError: If `std` < 0; in use, if `leaves` selects none.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.maml(
      ...     lambda w, target: jnp.sum((w - target) ** 2), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1,
      ...     start=jaxmaml.starts.noise(0.1))
      >>> state = learner.init(jnp.zeros(3))
      >>> fast_params, _ = learner.adapt(state, jnp.zeros(3), key=jax.random.key(0))
      >>> bool(jnp.all(fast_params != 0))
      True
    """
    checks.number("std", std, at_least=0.0)

    def start(params, support, key):
        mask = parameter_selection.select(params, leaves, "leaves")
        chosen, rest = parameter_selection.split(params, mask)
        flat, treedef = jax.tree.flatten(chosen)
        keys = jax.random.split(key, len(flat))
        moved = [p + std * jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, flat, strict=True)]
        return parameter_selection.merge(jax.tree.unflatten(treedef, moved), rest)

    return start


def shared_head(head: Leaves, num_ways: int | None = None) -> Start:
    """Build a start whose linear head has one learned vector for all classes (UNICORN-MAML).

    Every column of the kernel, and every entry of the bias, starts as the first one: before adaptation all classes have
    the same logit, so that the order of the labels does not matter, and the head can be started for any number of
    classes. The learned values of the other columns have no effect.

    Args:
      head: The leaves of the head, a kernel `[num_features, n]` and perhaps a bias `[n]`.
      num_ways: The number of classes of a task, if it differs from `n`: a learner with the loss of a model of 20
        classes and `num_ways=20` adapts and evaluates the state that a learner of 5 classes has trained.
    Returns:
      `(params, support) -> params`.
    Raises:
      ValueError: If `num_ways` < 1; in use, if the head is something else.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> params = {"body": jnp.ones(2), "head": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.zeros(2)}}
      >>> jaxmaml.starts.shared_head("head", num_ways=3)(params, None)["head"]["kernel"].tolist()
      [[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]

    References:
      Ye and Chao, 2022, https://arxiv.org/abs/2106.16245
    """
    if num_ways is not None:
        checks.positive_int("num_ways", num_ways)

    def start(params, support):
        mask = parameter_selection.select(params, head, "head")
        shapes = [leaf.shape for leaf in jax.tree.leaves(parameter_selection.split(params, mask)[0])]
        if not set(map(len, shapes)) <= {1, 2} or len({shape[-1] for shape in shapes}) != 1:
            raise ValueError(f"`head` must be a kernel [num_features, n] and a bias [n], got shapes {shapes}.")
        number = shapes[0][-1] if num_ways is None else num_ways

        def shared(leaf):
            return jnp.broadcast_to(leaf[..., :1], (*leaf.shape[:-1], number))

        return jax.tree.map(lambda m, leaf: shared(leaf) if m else leaf, mask, params)

    return start if num_ways is None else Resizing(start)


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
