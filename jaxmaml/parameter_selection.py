"""Selections of parameter leaves, by name, predicate or mask; and parameters split in two by such a selection."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml.types import PyTree


class Named(NamedTuple):
    """A selection of leaves, and the name of the argument it came from."""

    leaves: "Leaves"
    name: str


class Except(NamedTuple):
    """All leaves outside a selection, and the name of the argument it came from."""

    leaves: "Leaves"
    name: str


#: `None` for all; names that are components of their paths; a predicate of the path; a tree of booleans (a prefix).
Leaves = str | Sequence[str] | Callable[[str], bool] | Named | Except | PyTree | None


def select(params: PyTree, leaves: Leaves, name: str) -> PyTree:
    """The selection `leaves` as a tree of booleans of the structure of `params`.

    A leaf's path is its keys joined by "/", as in `"params/Dense_2/kernel"`. A name selects the leaves whose path
    contains it as a key, and a list of names those whose path contains any of them.

    Args:
      params: Any pytree.
      leaves: What to select.
      name: The name of the caller's argument, for error messages.

    Raises:
      ValueError: If nothing is selected, or a mask does not fit.
      TypeError: If a mask or a predicate gives anything but booleans.
    """
    if isinstance(leaves, Named):
        return select(params, *leaves)
    if isinstance(leaves, Except):
        others = jax.tree.map(lambda chosen: not chosen, select(params, leaves.leaves, leaves.name))
        if not any(jax.tree.leaves(others)):
            raise ValueError(f"`{leaves.name}` selects every leaf and leaves nothing to adapt, got {leaves.leaves!r}.")
        return others
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    treedef = jax.tree.structure(params)
    if leaves is None:
        chosen = [True] * len(paths)
    elif isinstance(leaves, str):
        chosen = [leaves in path.split("/") for path in paths]
    elif isinstance(leaves, (tuple, list)) and leaves and all(isinstance(name, str) for name in leaves):
        chosen = [any(name in path.split("/") for name in leaves) for path in paths]
    elif callable(leaves) and jax.tree_util.all_leaves([leaves]):
        chosen = [leaves(path) for path in paths]
    else:
        try:
            chosen = jax.tree.leaves(jax.tree.broadcast(leaves, params))
        except ValueError as error:
            raise ValueError(
                f"`{name}` must be a mask that fits the parameters, a name, some names or a predicate of their path: "
                f"{error}"
            ) from None
    for wrong in (c for c in chosen if not isinstance(c, (bool, np.bool_))):
        raise TypeError(f"`{name}` must say true or false of each leaf, got {wrong!r}.")
    if not any(chosen):
        raise ValueError(f"`{name}` selects no leaf, got {leaves!r}; the leaves are {', '.join(paths)}.")
    return jax.tree.unflatten(treedef, map(bool, chosen))


def split(params: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves where `mask` is true, and the leaves where it is false, each with `None` for the others."""
    chosen = jax.tree.map(lambda m, leaf: leaf if m else None, mask, params)
    rest = jax.tree.map(lambda m, leaf: None if m else leaf, mask, params)
    return chosen, rest


def merge(chosen: PyTree, rest: PyTree) -> PyTree:
    """The inverse of `split`: `merge(*split(params, mask))` is `params`.

    Args:
      chosen, rest: Of the same structure; exactly one of them is `None` at each leaf.
    """
    return jax.tree.map(lambda a, b: b if a is None else a, chosen, rest, is_leaf=lambda x: x is None)


def with_steps(params: PyTree, mask: PyTree, num_steps: int) -> PyTree:
    """`params` with a leading axis of `num_steps` equal copies where `mask` is true."""
    return jax.tree.map(lambda m, leaf: jnp.broadcast_to(leaf, (num_steps, *leaf.shape)) if m else leaf, mask, params)


def at_step(params: PyTree, mask: PyTree, step: Any) -> PyTree:
    """The parameters of one step, from `with_steps`: see `value_at`."""
    return jax.tree.map(lambda m, leaf: value_at(leaf, step) if m else leaf, mask, params)


def value_at(values: jax.Array, step: Any) -> jax.Array:
    """The value of inner step `step` on an axis that has one for each step of training, `[num_steps, ...]`.

    Steps beyond the last reuse the last step's value, and steps before the first the first's. This is the rule of all
    axes that depend on the step; streams alone refuse, since they have no data left.
    """
    return values[jnp.clip(step, 0, values.shape[0] - 1)]


def path_name(path: Any) -> str:
    """The keys of a path of `jax.tree_util`, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
