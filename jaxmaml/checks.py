"""Checks of arguments at the public boundary, whose errors say what was expected and what came."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml.jax_internals import Tracer, explicit_axes, flag
from jaxmaml.types import InnerRule, LossFn, MetaLearner, MetaState, PyTree, Task, WeightedBatch


def positive_int(name: str, value: Any, at_least: int = 1) -> int:
    """Return `value` as an int, or raise if it is not an int or is below `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an int, got {value!r} of type {type(value).__name__}.")
    if value < at_least:
        raise ValueError(f"`{name}` must be >= {at_least}, got {value}.")
    return int(value)


def number(name: str, value: Any, at_least: float = -np.inf) -> None:
    """`value` must be a finite number >= `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not at_least <= value < np.inf:
        raise ValueError(f"`{name}` must be a finite number >= {at_least}, got {value}.")


def positive(name: str, value: Any) -> None:
    """`value` must be a number > 0.

    Raises:
      TypeError: If it is not a number.
      ValueError: If it is not finite or not > 0.
    """
    number(name, value)
    if not value > 0:
        raise ValueError(f"`{name}` must be > 0, got {value}.")


def boolean(name: str, value: Any) -> None:
    """Raise `TypeError` unless `value` is `True` or `False`; 0, 1 and arrays, which may be mistakes, are refused."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool, got {value!r}.")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """`value` must be one of `choices`, which the error lists."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def function(name: str, value: Any) -> None:
    """Raise `TypeError` unless `value` is callable; `name` is the argument that the error names."""
    if not callable(value):
        raise TypeError(f"`{name}` must be callable, got {type(value).__name__}.")


def optimizer(name: str, value: Any) -> None:
    """`value` must be an optax transformation, and not an inner rule."""
    if isinstance(value, InnerRule) or not all(callable(getattr(value, part, None)) for part in ("init", "update")):
        raise TypeError(
            f"`{name}` must be an optax transformation such as optax.sgd(0.01), got {type(value).__name__}."
        )


def inner_optimizer(value: Any) -> None:
    """`value` must be an optax transformation or a complete inner rule."""
    if not isinstance(value, InnerRule):
        return optimizer("inner_optimizer", value)
    for part, member in zip(value._fields, value, strict=True):
        function(f"inner_optimizer.{part}", member)


def learner(value: Any) -> None:
    """`value` must be a learner, such as `jaxmaml.maml` returns."""
    if not isinstance(value, MetaLearner):
        raise TypeError(f"`learner` must be a MetaLearner such as jaxmaml.maml(...) returns, got {_kind(value)}.")


def prng_key(value: Any) -> None:
    """`value` must be one PRNG key, typed or raw, and not a seed."""
    is_typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    is_raw = isinstance(value, (jax.Array, np.ndarray)) and value.dtype == jnp.uint32
    raw_shape = (2,) if flag("jax_default_prng_impl") == "threefry2x32" else (4,)
    if not (is_typed and value.shape == ()) and not (is_raw and value.shape == raw_shape):
        raise TypeError(f"`key` must be a single PRNG key such as jax.random.key(0), got {_describe(value)}.")


def state(value: Any) -> None:
    """`value` must be a state of a learner, and not its parameters."""
    if not isinstance(value, MetaState):
        raise TypeError(f"`state` must be a MetaState from learner.init(params), got {_kind(value)}.")


def params(value: PyTree) -> PyTree:
    """Return `value` as strongly typed JAX arrays, or raise if a leaf cannot be adapted."""
    if not jax.tree.leaves(value):
        raise ValueError(f"`params` has no arrays to adapt, got {value!r}.")
    return floating("params", value)


def floating(name: str, value: PyTree) -> PyTree:
    """Return `value` as strongly typed floating-point JAX arrays, or raise if a leaf is something else."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        dtype = getattr(leaf, "dtype", None) or np.result_type(type(leaf))
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"Every leaf of `{name}` must be floating point, got {_describe(leaf)} at {name}{_path(path)}. "
                "Keep constants in `loss_fn` or in the batch."
            )
    # The first update would make a weakly typed leaf strongly typed, and so be traced twice.
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), value)


def batch(name: str, value: Any) -> None:
    """`value` must be a pytree of arrays without an empty one."""
    leaves = jax.tree_util.tree_leaves_with_path(value)
    if not leaves:
        raise ValueError(f"`{name}` has no arrays, got {value!r}.")
    for path, leaf in leaves:
        if not hasattr(leaf, "shape"):
            raise TypeError(f"`{name}` must be a pytree of arrays, got {_describe(leaf)} at {name}{_path(path)}.")
        if 0 in leaf.shape:
            raise ValueError(f"`{name}` is empty: {name}{_path(path)} has shape {tuple(leaf.shape)}.")
    if isinstance(value, WeightedBatch):
        weighted(name, value)


def weighted(name: str, value: WeightedBatch) -> None:
    """Shapes of a `WeightedBatch` must fit, and where its weights are concrete they must be a padding.

    Raises:
      TypeError: If the weights are not floating point.
      ValueError: If there is not one weight for each example; if one is negative or not finite, or all are zero.
    """
    weights, label = value.weights, f"{name}.weights"
    if not hasattr(weights, "dtype") or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(f"`{label}` must be a floating-point array, got {_describe(weights)}.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not weights.shape or jnp.shape(leaf)[: weights.ndim] != weights.shape:
            raise ValueError(
                f"`{label}` must have one weight for each example: it has shape {tuple(weights.shape)}, and "
                f"{name}{_path(path)} has shape {jnp.shape(leaf)}."
            )
    is_concrete = isinstance(weights, (np.ndarray, jax.Array)) and not isinstance(weights, Tracer)
    if not is_concrete or not getattr(weights, "is_fully_addressable", True):
        return
    numbers = np.asarray(weights, np.float64)
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError(f"`{label}` must be finite and non-negative, got {numbers.min()} to {numbers.max()}.")
    if not (sums := numbers.sum(-1)).all():
        which = f" for number {int(np.argmin(sums.reshape(-1)))}" if sums.ndim else ""
        raise ValueError(f"`{label}` must have a positive weight in every batch, but all are zero{which}.")


def tasks(value: Any) -> int:
    """`value` must be a batch of tasks; return their number."""
    task("tasks", value)
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not leaf.shape:
            raise ValueError(f"Every leaf of `tasks` needs a leading task axis, got a scalar at tasks{_path(path)}.")
        sizes.setdefault(leaf.shape[0], f"tasks{_path(path)}")
    if len(sizes) > 1:
        found = ", ".join(f"{size} at {where}" for size, where in sizes.items())
        raise ValueError(f"Every leaf of `tasks` must have the same leading axis, the number of tasks; got {found}.")
    return next(iter(sizes))


def placement(value: Any, mesh: Any) -> None:
    """If `tasks` are sharded over a mesh of Explicit axes, it must be the learner's `mesh`, which may be `None`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        axes = explicit_axes(leaf)
        if axes and (mesh is None or not set(axes) <= set(mesh.axis_names)):
            ours = "no mesh is used here" if mesh is None else f"the learner's `mesh` has {', '.join(mesh.axis_names)}"
            raise ValueError(
                f"`tasks` must not be split over Explicit axes of another mesh: tasks{_path(path)} is split over "
                f"{', '.join(axes)}, and {ours}. Pass that mesh to the learner, mesh=..., or place `tasks` on a mesh "
                "of Auto axes, such as jaxmaml.task_mesh()."
            )


def num_examples(name: str, batch: Any) -> int:
    """Every leaf of `batch` must have the same leading axis; return its length. `name` is for the error."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"{name} needs leaves with one leading axis, got {sorted(sizes)}.")
    return sizes.pop()[0]


def task(name: str, value: Any) -> None:
    """`value` must be a task with arrays in its support and its query."""
    if not isinstance(value, Task):
        raise TypeError(f"`{name}` must be a jaxmaml.Task(support, query), got {_kind(value)}.")
    batch(f"{name}.support", value.support)
    batch(f"{name}.query", value.query)


def with_checked_output(loss_fn: LossFn) -> Callable[[PyTree, Any], tuple[jax.Array, Any]]:
    """Return `loss_fn` as `(params, batch) -> (loss, aux)`, raising if it returns anything else."""

    def checked(params, batch):
        output = loss_fn(params, batch)
        if isinstance(output, tuple) and len(output) != 2:
            raise ValueError(f"`loss_fn` must return a loss or (loss, aux), got a tuple of {len(output)}.")
        loss, aux = output if isinstance(output, tuple) else (output, ())
        if not hasattr(loss, "dtype") and not isinstance(loss, float):
            raise TypeError(f"`loss_fn` must return a loss or (loss, aux), got {_describe(loss)} as the loss.")
        loss = jnp.asarray(loss)
        if loss.shape:
            raise ValueError(f"`loss_fn` must return a scalar loss, got shape {loss.shape}; reduce it, as by jnp.mean.")
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(f"`loss_fn` must return a floating-point loss, got dtype {loss.dtype}.")
        return loss, arrays("the auxiliary output of `loss_fn`", aux)

    return checked


def arrays(name: str, value: Any) -> Any:
    """Return `value` with Python numbers as arrays, or raise if a leaf is neither."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
            raise TypeError(
                f"Every leaf of {name} must be an array or a number, got {_describe(leaf)} at {_path(path)}."
            )
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), value)


def not_traced(name: str, value: Any) -> None:
    """`value` must not be traced, because it is used by a loop on the host."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        raise TypeError(f"`{name}` is traced, and jaxmaml.fit loops on the host; under jit, scan over learner.update.")


def same_structure(name: str, value: Any, expected: Any) -> None:
    """`value` must have the structure that this learner creates."""
    if jax.tree.structure(value) != jax.tree.structure(expected):
        raise ValueError(
            f"`{name}` does not fit this learner, was it made by another one? Expected the structure "
            f"{jax.tree.structure(expected)}, got {jax.tree.structure(value)}."
        )


def like(name: str, value: PyTree, expected: PyTree, sizes: bool = True) -> None:
    """`value` must have structure, dtypes and shapes of `expected`, or only the number of axes without `sizes`."""

    def form(leaf):
        return jax.ShapeDtypeStruct(leaf.shape if sizes else (0,) * leaf.ndim, leaf.dtype)

    ours, theirs = (jax.tree.map(form, tree) for tree in (value, expected))
    if jax.tree.structure(ours) != jax.tree.structure(theirs) or jax.tree.leaves(ours) != jax.tree.leaves(theirs):
        raise ValueError(f"`{name}` must be like the parameters, {theirs}; got {ours}.")


def same_shape(name: str, value: Any, expected: Any) -> None:
    """`value` must be an array of the shape of `expected`."""
    if jnp.shape(value) != jnp.shape(expected):
        raise ValueError(f"`{name}` must have shape {jnp.shape(expected)}, got {jnp.shape(value)}.")


def _kind(value: Any) -> str:
    return type(value).__name__


def _describe(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"an array of dtype {value.dtype} and shape {tuple(value.shape)}"
    return f"{value!r} of type {_kind(value)}"


def _path(path) -> str:
    return jax.tree_util.keystr(path)
