"""The state of a training run, in memory and in a folder of checkpoints."""

import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxmaml.types import MetaState


class Run(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
      state: The current state.
      key: The data of the PRNG key from which tasks are drawn.
      best: The state with the best validation score; the initial state before any validation.
      score: The score of `best`, float32; larger is better.
      since_best: The number of validations since `best`, int32.
    """

    state: MetaState
    key: jax.Array
    best: MetaState
    score: jax.Array
    since_best: jax.Array

    def result(self) -> MetaState:
        """The state with the best validation score, or the last state if no score was finite."""
        return self.best if self.score > -jnp.inf else self.state


def beginning(state: MetaState, key: Any) -> Run:
    """The run with which `fit` begins if there is no checkpoint.

    Args:
      state: Where it starts, and its best state until a validation.
      key: Typed or raw; its data is kept, since checkpoints hold arrays alone.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return Run(state, data, jax.tree.map(jnp.copy, state), jnp.float32(-jnp.inf), jnp.int32(0))


def folder_of(directory: str | os.PathLike) -> epath.Path:
    """An absolute path, as Orbax needs it; `~` is the home folder, and cloud paths (`gs://`) are unchanged."""
    return epath.Path(directory if "://" in str(directory) else pathlib.Path(directory).expanduser().absolute())


def manager_of(folder: epath.Path, options: ocp.CheckpointManagerOptions | None = None) -> ocp.CheckpointManager:
    """An Orbax manager of the two parts of a checkpoint: the run, and the fingerprints of what made it."""
    handlers = {"run": ocp.StandardCheckpointHandler(), "made_by": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def newest(
    manager: ocp.CheckpointManager,
    directory: Any,
    state: MetaState,
    after: int,
    check: Callable[[str, dict[str, Any]], None],
) -> Run | None:
    """The newest readable run of a step later than `after`, or `None` if there is no such checkpoint.

    Raises:
      ValueError: If `check` does, or none of those that there are can be read.
    """
    steps = sorted((step for step in manager.all_steps() if step > after), reverse=True)
    for step in steps:
        where = f"The checkpoint of step {step} in {directory}"
        made_by = _unless_damaged(where, lambda step=step: _made_by(manager, step))
        if made_by is None:
            continue
        check(where, made_by)
        run = _unless_damaged(where, lambda step=step: _restored(manager, step, state))
        if run is not None:
            return run
    if steps:
        raise ValueError(f"No checkpoint in {directory} can be read, of steps {steps}; take another directory.")
    return None


def _unless_damaged(where: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # A damaged file can make Orbax, JSON or TensorStore raise anything.
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"{where} cannot be read, and the one before it is tried ({why}).", stacklevel=5)
        return None


def _made_by(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(made_by=ocp.args.JsonRestore()))["made_by"]


def _restored(manager: ocp.CheckpointManager, step: int, state: MetaState) -> Run:
    key = manager.item_metadata(step)["run"].tree["key"]
    like = beginning(state, jnp.zeros(key.shape, key.dtype))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    saved = manager.restore(step, args=ocp.args.Composite(run=ocp.args.StandardRestore(abstract)))["run"]
    return jax.tree.map(_placed_as, saved, like)


def _placed_as(saved: jax.Array, ours: jax.Array) -> jax.Array:
    """Restored arrays are committed to a device by Orbax; uncommitted ones are needed where a learner has a mesh."""
    if ours.committed:
        return saved
    if jnp.issubdtype(saved.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(saved)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(saved))
    return jnp.asarray(np.asarray(saved))
