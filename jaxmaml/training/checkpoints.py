"""Checkpoints of a training run, by Orbax: everything that the next outer step depends on."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxmaml import checks
from jaxmaml.training.run_state import Run, folder_of, manager_of, newest
from jaxmaml.types import MetaState


class Checkpoints(NamedTuple):
    """Where and how often `fit` saves, so that a killed run can be resumed: `fit(..., checkpoints=...)`.

    A checkpoint holds the state (the initial parameters, everything else that is meta-learned, the outer optimizer's
    state, the step), the PRNG key of the tasks, and the state with the best validation score. Orbax writes it under
    another name and renames it, so that a run killed at any moment leaves complete checkpoints only.

    Attributes:
      directory: A folder for this run alone; created if it does not exist.
      every: The number of outer steps between checkpoints, which are written at the end of a dispatch. The last state
        of a run is saved as well, whether it ends normally, by an early stop, an interrupt or an error.
      keep: The number of checkpoints to keep, the latest ones. If the latest cannot be read, the previous one is used.
      same_program: Raise if a checkpoint was made with other arguments (a step size, another algorithm, other data,
        another initial state), even if its arrays fit; with `False`, resume with the new arguments.

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


class Store:
    """Saves runs and finds the latest. A context manager; leaving it waits for pending writes.

    Args:
      settings: Where and how often.
      state: Any state of the learner.
      made_by: The fingerprints of the run, by name; `None` for what it does not have.
    """

    def __init__(self, settings: Checkpoints, state: MetaState, made_by: dict[str, str | None]):
        self.every = settings.every
        self._settings = settings
        self._whole = -1  # The step of the newest complete checkpoint, or the initial step.
        self.goes_on = False  # Whether a run had begun here before, even if it was killed before its first checkpoint.
        self._made_by = {"arrays": _arrays(state), "jax": jax.__version__, **made_by}
        options = ocp.CheckpointManagerOptions(max_to_keep=settings.keep, cleanup_tmp_directories=True)
        self._manager = manager_of(folder_of(settings.directory), options)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error) -> None:
        self._manager.close()

    def latest(self, run: Run) -> Run:
        """The latest run in the folder, or `run` itself where there is none.

        Raises:
          ValueError: If it does not fit `run`, or was made by another program or with another key; or if none can be
            read.
        """
        self._whole = int(run.state.step)
        begun = folder_of(self._settings.directory) / f"begun_at_{self._whole}"
        self.goes_on = begun.exists()
        saved = newest(self._manager, self._settings.directory, run.state, self._whole, self._check)
        if saved is None:
            begun.touch()
            return run
        self.goes_on = True
        self._whole = int(saved.state.step)
        if not jnp.array_equal(saved.key, run.key):
            where = f"The checkpoint of step {int(saved.state.step)} in {self._settings.directory}"
            raise ValueError(f"{where} drew its tasks from another `key`; pass the same, or another directory.")
        return saved

    def save(self, run: Run) -> None:
        """Save a run, unless it is saved already, or its arrays were donated to a dispatch that failed."""
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(run.state)) or int(run.state.step) == self._whole:
            return
        self._whole = int(run.state.step)
        if self._whole in self._manager.all_steps():  # A damaged one, which was passed over.
            self._manager.delete(self._whole)
        args = ocp.args.Composite(run=ocp.args.StandardSave(run), made_by=ocp.args.JsonSave(self._made_by))
        # By force, since Orbax saves nothing before the newest step, and that may be a damaged one.
        self._manager.save(self._whole, args=args, force=True)

    def _check(self, where: str, made_by: dict[str, Any]) -> None:
        _check_arrays(where, made_by["arrays"], self._made_by["arrays"])
        if not self._settings.same_program or made_by["jax"] != self._made_by["jax"]:
            return  # Another version of JAX may print the same program differently.
        for name, what in _DIFFERENCES.items():
            theirs, ours = made_by.get(name), self._made_by.get(name)
            if None not in (theirs, ours) and theirs != ours:
                what += _choices(made_by, self._made_by) if name == "program" else ""
                raise ValueError(
                    f"{where} {what}. Take another directory, or Checkpoints(..., same_program=False) to go on."
                )


def _choices(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first choice of the learners that differs, in words; "" if none does, or the learners are the user's own."""
    if None in (theirs.get("configuration"), ours.get("configuration")):
        return ""
    then, now = (json.loads(each["configuration"]) for each in (theirs, ours))
    for name in {**then, **now}:
        if name not in _EXECUTION and then.get(name) != now.get(name):
            return f"; `{name}` was {then.get(name, 'the default')}, and is {now.get(name, 'the default')}"
    return ""


# A run may go on with others.
_EXECUTION = ("mesh", "chunk_size")
_DIFFERENCES = {
    "program": "was made by another program: its arrays fit, but the algorithm, the loss, a step size or the number of "
    "tasks differs",
    "tasks": "drew its tasks by another sampler, or from other data",
    "start": "is of a run that began at another state",
    "validation": "was validated in another way, so that scores cannot be compared",
}


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
    folder = folder_of(directory)
    run = None
    if folder.is_dir():  # Orbax would make it.
        with manager_of(folder) as manager:
            ours = _arrays(state)
            run = newest(
                manager, directory, state, -1, lambda where, made_by: _check_arrays(where, made_by["arrays"], ours)
            )
    if run is None:
        raise FileNotFoundError(f"There is no checkpoint in {folder}.")
    return run.result() if best else run.state


def check(settings: Any) -> None:
    """`settings` must be well-formed `Checkpoints`."""
    if not isinstance(settings, Checkpoints):
        raise TypeError(f"`checkpoints` must be a jaxmaml.Checkpoints, got {type(settings).__name__}.")
    if not isinstance(settings.directory, (str, os.PathLike)):
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
