"""Checkpoints of a training run: everything that the next outer step depends on, by Orbax."""

import hashlib
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxmaml import checks
from jaxmaml.types import MetaLearner, MetaState, PyTree


class Checkpoints(NamedTuple):
    """Where and how often `fit` saves, so that a killed run goes on where it was: `fit(..., checkpoints=...)`.

    A checkpoint holds the state (parameters, everything else that is meta-learned, the outer optimizer's state, the
    step), the key that draws the tasks, and the best validated state. Orbax writes it beside the others and renames
    it, so that a run killed at any moment leaves whole ones.

    Attributes:
      directory: A folder of its own for each run; made if it does not exist.
      every: Outer steps between checkpoints; the end of a dispatch is waited for.
      keep: How many of the latest stay.
      same_program: Raise where a checkpoint was made with other arguments (a step size, another algorithm) even if its
        arrays fit; `False` to go on with what has changed.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> loss_fn = jaxmaml.mean_squared_error(model.apply)
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> start = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> def run(num_steps, directory):
      ...     return jaxmaml.fit(
      ...         learner, start, jaxmaml.tasks.sinusoid(), jax.random.key(1), num_steps=num_steps, num_tasks=4,
      ...         steps_per_dispatch=10, progress=False, checkpoints=jaxmaml.Checkpoints(directory, every=10))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     state, history = run(20, folder)        # this one ends at step 20
      ...     state, history = run(30, folder)        # and this one goes on from there
      >>> int(state.step), history.query_loss.shape
      (30, (10,))
    """

    directory: str | pathlib.Path
    every: int = 1000
    keep: int = 2
    same_program: bool = True


class Run(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: Where training is.
      key: Data of the key that draws the tasks.
      best: The state that validated best; the start, before any validation.
      score: Of `best`, float32; larger is better.
      since_best: Validations since then, int32.
    """

    state: MetaState
    key: jax.Array
    best: MetaState
    score: jax.Array
    since_best: jax.Array


def start_of(state: MetaState, key: Any) -> Run:
    """The run that `fit` begins where there is no checkpoint.

    Args:
      state: Where it starts, and its best state until a validation.
      key: Typed or raw; its data is kept, since checkpoints hold arrays alone.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return Run(state, data, jax.tree.map(jnp.copy, state), jnp.float32(-jnp.inf), jnp.int32(0))


class Store:
    """Saves runs and finds the latest. A context, which waits for what is being written."""

    def __init__(self, settings: Checkpoints, learner: MetaLearner, state: MetaState, tasks: PyTree):
        self._settings = settings
        self._made_by = {"arrays": _arrays(state), "program": _program(learner, state, tasks), "jax": jax.__version__}
        options = ocp.CheckpointManagerOptions(max_to_keep=settings.keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(pathlib.Path(settings.directory).absolute(), options=options)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error) -> None:
        self._manager.close()

    def latest(self, run: Run) -> Run:
        """The latest run in the folder, or `run` itself where there is none.

        Raises:
          ValueError: If it does not fit `run`, or was made by another program or with another key.
        """
        step = self._manager.latest_step()
        if step is None or step <= int(run.state.step):
            return run
        where = f"The checkpoint of step {step} in {self._settings.directory}"
        made_by = _made_by(self._manager, step)
        _check_arrays(where, made_by["arrays"], self._made_by["arrays"])
        same_jax = made_by["jax"] == self._made_by["jax"]
        if self._settings.same_program and same_jax and made_by["program"] != self._made_by["program"]:
            raise ValueError(
                f"{where} was made by another program: its arrays fit, but the algorithm, the loss, a step size, the "
                "number of tasks or how they are executed (chunks, the devices of a mesh) differs. Take another "
                "directory, or Checkpoints(..., same_program=False) to go on."
            )
        saved = _restored(self._manager, step, run)
        if not jnp.array_equal(saved.key, run.key):
            raise ValueError(f"{where} drew its tasks from another `key`; pass the same, or another directory.")
        return saved

    def save(self, run: Run) -> None:
        args = ocp.args.Composite(run=ocp.args.StandardSave(run), made_by=ocp.args.JsonSave(self._made_by))
        self._manager.save(int(run.state.step), args=args)


def restore(directory: str | pathlib.Path, state: MetaState, *, best: bool = True) -> MetaState:
    """Read the state that a run of `fit` saved: to evaluate it, or to start another run from it.

    Args:
      directory: That of the run's `Checkpoints`.
      state: Any state of the same structure, such as `learner.init(params)`.
      best: The one that validated best, where there was validation; `False` for the last.
    Returns:
      The `MetaState` in the latest checkpoint.
    Raises:
      FileNotFoundError: If there is no checkpoint.
      ValueError: If its arrays are not those of `state`.
    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> learner = jaxmaml.maml(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> start = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     state, _ = jaxmaml.fit(
      ...         learner, start, jaxmaml.tasks.sinusoid(), jax.random.key(1), num_steps=10, num_tasks=4,
      ...         progress=False, checkpoints=jaxmaml.Checkpoints(folder))
      ...     restored = jaxmaml.restore(folder, start)
      >>> int(restored.step)
      10
    """
    checks.state(state)
    folder = pathlib.Path(directory).absolute()
    nothing = FileNotFoundError(f"There is no checkpoint in {folder}.")
    if not folder.is_dir():  # Orbax would make it.
        raise nothing
    handlers = {"run": ocp.StandardCheckpointHandler(), "made_by": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise nothing
        _check_arrays(
            f"The checkpoint of step {step} in {directory}", _made_by(manager, step)["arrays"], _arrays(state)
        )
        key = manager.item_metadata(step)["run"].tree["key"]
        run = _restored(manager, step, start_of(state, jnp.zeros(key.shape, key.dtype)))
    return run.best if best and run.score > -jnp.inf else run.state


def _made_by(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(made_by=ocp.args.JsonRestore()))["made_by"]


def _restored(manager: ocp.CheckpointManager, step: int, like: Run) -> Run:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    saved = manager.restore(step, args=ocp.args.Composite(run=ocp.args.StandardRestore(abstract)))["run"]
    return jax.tree.map(_placed_as, saved, like)


def _placed_as(saved: jax.Array, ours: jax.Array) -> jax.Array:
    """Orbax ties what it restores to a device; where ours is tied to none, a learner with a mesh may move it."""
    return saved if ours.committed else jnp.asarray(np.asarray(saved))


def check(settings: Any) -> None:
    """`settings` must be well-formed `Checkpoints`."""
    if not isinstance(settings, Checkpoints):
        raise TypeError(f"`checkpoints` must be a jaxmaml.Checkpoints, got {type(settings).__name__}.")
    if not isinstance(settings.directory, (str, pathlib.Path)):
        raise TypeError(f"`directory` must be a path, got {settings.directory!r}.")
    checks.positive_int("every", settings.every)
    checks.positive_int("keep", settings.keep)


def _check_arrays(where: str, theirs: dict[str, str], ours: dict[str, str]) -> None:
    for path in [*theirs, *ours]:
        if theirs.get(path) != ours.get(path):
            raise ValueError(
                f"{where} is of another model, algorithm or optimizer: it has {theirs.get(path, 'nothing')} at {path}, "
                f"and this learner {ours.get(path, 'nothing')}."
            )


def _arrays(state: MetaState) -> dict[str, str]:
    """Shape and dtype of everything in a state, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _program(learner: MetaLearner, state: MetaState, tasks: PyTree) -> str:
    """A digest of the outer step's program: of its operations and constants, not of where they were written."""
    text = re.sub(r"0x[0-9a-f]+|/\S+", "", str(jax.make_jaxpr(learner.update)(state, tasks)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
