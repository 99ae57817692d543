"""Where the tasks of a training run come from: a sampler on the device, or batches from outside of it."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmaml import checks, keys
from jaxmaml.training import padding
from jaxmaml.training.compiled_steps import draw, take_batches, take_steps
from jaxmaml.training.samplers import Sampler, as_pytree, check_sampler
from jaxmaml.types import MetaInfo, MetaLearner, MetaState, Task

#: `(state, count) -> (number of steps, state, metrics)`: the next dispatch, of `count` outer steps at most.
Take = Callable[[MetaState, int], tuple[int, MetaState, Any]]


class Batches(NamedTuple):
    """Batches of tasks from outside of the device, in place of a sampler: `fit(learner, state, Batches(open), ...)`.

    They are read in a thread of their own, stacked for a dispatch and transferred while the device computes the one
    before. A resumed run opens them at the step at which it goes on.

    Attributes:
      open: `first_step -> iterable`, of which the first item is the batch of tasks of outer step `first_step`, and so
        on: a `Task` of NumPy or JAX arrays with a leading task axis on every leaf, of the same shapes at every step. A
        generator, a list or a data loader. It should give the same batches for a step whenever it is opened. Of several
        processes, each gives its own share of the tasks.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, optax, jaxmaml
      >>> def lines(first_step):
      ...     for step in range(first_step, 100):
      ...         rng = np.random.default_rng(step)
      ...         x, slope = rng.normal(size=(2, 4, 5)), rng.normal(size=(4, 1))    # 4 tasks of 5 points
      ...         yield jaxmaml.Task(*(jaxmaml.Batch(part, slope * part) for part in x.astype(np.float32)))
      >>> loss_fn = jaxmaml.mean_squared_error(lambda params, x: params * x)
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.adam(1e-2), num_inner_steps=1)
      >>> state, history = jaxmaml.fit(
      ...     learner, learner.init(jnp.ones(())), jaxmaml.tasks.Batches(lines), num_steps=20, progress=False)
      >>> history.query_loss.shape
      (20,)
    """

    open: Callable[[int], Iterable[Task]]


class RanOutError(Exception):
    """The batches ended before the last outer step."""


class Sampled:
    """Tasks that are drawn on the device, in the compiled outer step.

    Args:
      sample_task: `key -> Task`.
      key: The PRNG key of the run; outer step `t` draws from `fold_in(key, t)`.
      num_tasks: The number of tasks in an outer step; >= 1.
    Raises:
      TypeError, ValueError: If one of them is not that.
    """

    def __init__(self, sample_task: Sampler, key: chex.PRNGKey, num_tasks: Any):
        self._num_tasks = checks.positive_int("num_tasks", num_tasks)
        check_sampler("sample_task", sample_task, key)
        self._sample, self.key = as_pytree(sample_task), key

    def check(self, learner: MetaLearner, state: MetaState) -> None:
        """The padding of its tasks must have no effect."""
        padding.check_drawn(learner, state, self._sample, keys.threefry(self.key))

    def tasks(self, key: chex.PRNGKey) -> Task:
        """The tasks of step 0, for fingerprints."""
        return draw(self._sample, key, self._num_tasks, 0)

    @contextlib.contextmanager
    def dispatches(self, learner: MetaLearner, first: int, end: int, capacity: int) -> Iterator[Take]:
        """Yields what takes the outer steps from `first` to `end`, `capacity` at a time."""

        def take(state, count):
            return count, *take_steps(learner, state, self._sample, self.key, capacity, self._num_tasks, count)

        yield take

    def no_history(self, learner: MetaLearner, state: MetaState) -> MetaInfo:
        """The shapes of the history of one step."""
        return jax.eval_shape(
            lambda s: take_steps(learner, s, self._sample, self.key, 1, self._num_tasks, 1)[1][0], state
        )


class Fed:
    """Tasks that come from outside of the device, read ahead by a thread.

    Args:
      batches: `Batches`, whose `open` is called with the first outer step.
      key, num_tasks: `None`, because the batches have their tasks already.
    Raises:
      TypeError: If `key` or `num_tasks` is given, or `open` is no function.
    """

    #: The contents are not known before they come, and so they have no fingerprint.
    tasks = None

    def __init__(self, batches: Batches, key: Any, num_tasks: Any):
        for name, value in (("key", key), ("num_tasks", num_tasks)):
            if value is not None:
                raise TypeError(f"`{name}` is for a sampler: jaxmaml.tasks.Batches has its tasks already.")
        checks.function("open", batches.open)
        self._open = batches.open
        self.key = jax.random.key(0, impl="threefry2x32")  # Of no effect; a checkpoint has one.

    def check(self, learner: MetaLearner, state: MetaState) -> None:
        """Nothing to look at yet: the first batch is looked at when it comes."""

    @contextlib.contextmanager
    def dispatches(self, learner: MetaLearner, first: int, end: int, capacity: int) -> Iterator[Take]:
        """Yields what takes the outer steps from `first` to `end`, `capacity` at a time."""
        ready: queue.Queue = queue.Queue(maxsize=1)
        over = threading.Event()
        reader = _Reader(self._open, first, end, capacity, _sharding(learner))
        # The setting belongs to a thread.
        x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

        def read():
            with jax.enable_x64(x64):
                for item in reader.items(over):
                    _put(ready, item, over)

        thread = threading.Thread(target=read, daemon=True, name="jaxmaml.tasks.Batches")
        is_first = True

        def take(state, count):
            nonlocal is_first
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            count, stacked = item
            if is_first and jax.process_count() == 1:
                padding.check(learner, state, jax.tree.map(lambda leaf: leaf[0, 0], stacked))
            is_first = False
            return count, *take_batches(learner, state, stacked, capacity, count)

        if first < end:
            thread.start()
        try:
            yield take
        finally:
            over.set()
            if first < end:
                thread.join(timeout=5.0)  # A loader that hangs is left behind.

    def no_history(self, learner: MetaLearner, state: MetaState) -> MetaInfo:
        """The shapes of the history of one step, by the batch of the step before this state."""
        tasks = next(iter(self._open(max(0, int(state.step) - 1))))
        stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tasks)
        return jax.eval_shape(lambda s: take_batches(learner, s, stacked, 1, 1)[1][0], state)


def source_of(sample_task: Sampler | Batches, key: Any, num_tasks: Any) -> Sampled | Fed:
    """The source of the tasks, for the arguments of `fit`; it raises the errors of `Sampled` or `Fed`."""
    if isinstance(sample_task, Batches):
        return Fed(sample_task, key, num_tasks)
    return Sampled(sample_task, key, num_tasks)


class _Reader:
    """Reads batches, and checks and stacks them."""

    def __init__(self, open_at, first: int, end: int, capacity: int, sharding: NamedSharding | None):
        self._open, self._first, self._end = open_at, first, end
        self._capacity, self._sharding = capacity, sharding

    def items(self, over: threading.Event) -> Iterator[Any]:
        """`(count, stacked)` for each dispatch; an error is the last item, after the steps before it."""
        like, step, error = None, self._first, None
        batches: Iterator[Task] = iter(())
        try:
            batches = iter(self._open(self._first))
        except Exception as raised:
            error = raised
        while step < self._end and error is None and not over.is_set():
            rows: list[Task] = []
            try:
                while len(rows) < min(self._capacity, self._end - step):
                    tasks = next(batches, None)
                    if tasks is None:
                        missing = step + len(rows)
                        raise RanOutError(
                            f"`tasks.Batches` ran out at outer step {missing}: it was opened at step {self._first}, "
                            f"and training goes on to step {self._end}."
                        )
                    like = self._checked(tasks, like, step + len(rows))
                    rows.append(jax.tree.map(np.asarray, tasks))
            except Exception as raised:
                error = raised
            if rows:
                yield len(rows), self._stacked(rows)
                step += len(rows)
        if error is not None:
            yield error
        close = getattr(batches, "close", None)
        if close is not None:
            close()

    def _checked(self, tasks: Any, like: Any, step: int) -> Any:
        where = f"`tasks.Batches`, outer step {step}"
        try:
            checks.tasks(tasks)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
        found = {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tasks)
        }
        mine = jax.tree.structure(tasks), found
        if like is not None and mine != like:
            raise ValueError(f"{where}: every batch must be like the first one, {like[1]}, got {found}.")
        return mine

    def _stacked(self, rows: list[Task]) -> Task:
        # Always of a dispatch's full size, so that there is one program.
        missing = max(2, self._capacity) - len(rows)
        stacked = jax.tree.map(lambda *leaves: np.stack([*leaves, *[leaves[-1]] * missing]), *rows)
        if self._sharding is None:
            return jax.tree.map(jnp.asarray, stacked)
        place = jax.make_array_from_process_local_data
        return jax.tree.map(lambda leaf: place(self._sharding, leaf.astype(_canonical(leaf.dtype))), stacked)


def _canonical(dtype: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(dtype)


def _sharding(learner: MetaLearner) -> NamedSharding | None:
    """How the shares of several processes form one array; `None` for a single process."""
    if jax.process_count() == 1:
        return None
    mesh = getattr(getattr(getattr(learner, "spec", None), "axes", None), "mesh", None)
    if mesh is None:
        raise ValueError(
            "In several processes the learner needs a `mesh` over their devices: mesh=jaxmaml.task_mesh()."
        )
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))


def _put(ready: queue.Queue, item: Any, over: threading.Event) -> None:
    while not over.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue
