"""The training loop. A dispatch is one compiled call that takes several outer steps; the host works in between."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import checks
from jaxmaml.metrics import Writer, forget_after
from jaxmaml.metrics import check as check_writers
from jaxmaml.training import checkpoints as checkpointing
from jaxmaml.training import fingerprints, interrupts
from jaxmaml.training import validation as validating
from jaxmaml.training.checkpoints import Checkpoints, Store
from jaxmaml.training.errors import Interrupted, NonFiniteError, OutOfTasksError
from jaxmaml.training.progress import progress_bar
from jaxmaml.training.run_state import beginning
from jaxmaml.training.samplers import Sampler
from jaxmaml.training.sources import Batches, Fed, RanOutError, Sampled, source_of
from jaxmaml.training.validation import Validation
from jaxmaml.types import MetaInfo, MetaLearner, MetaState


def fit(
    learner: MetaLearner,
    state: MetaState,
    sample_task: Sampler | Batches,
    key: chex.PRNGKey | None = None,
    *,
    num_steps: int,
    num_tasks: int | None = None,
    steps_per_dispatch: int = 100,
    progress: bool = True,
    on_dispatch: Callable[[MetaState, MetaInfo], None] | None = None,
    checkpoints: Checkpoints | None = None,
    validation: Validation | None = None,
    metrics: Writer | Iterable[Writer] = (),
) -> tuple[MetaState, MetaInfo]:
    """Take `num_steps` outer steps, each on `num_tasks` fresh tasks.

    Sampling, outer step and metrics run on the device. One dispatch is one compiled call that takes
    `steps_per_dispatch` outer steps. The tasks of outer step `t = state.step` are drawn from `fold_in(key, t)`, so that
    training in two calls, or with another number of steps in a dispatch, gives results that are equal to the bit.

    Args:
      learner: A learner from `jaxmaml.maml` or another factory.
      state: The state to start from: `learner.init(params)`, or a state from an earlier call.
      sample_task: `key -> Task`. A sampler that holds large arrays should be a pytree, as
        `jaxmaml.tasks.image_episodes` returns, so that they are arguments of the compiled call and not constants in it.
        Or `jaxmaml.tasks.Batches(open)`, batches of tasks from outside of the device.
      key: The PRNG key from which all tasks are drawn; not for `Batches`.
      num_steps: The number of outer steps to take.
      num_tasks: The number of tasks in an outer step (the meta-batch); not for `Batches`.
      steps_per_dispatch: The number of outer steps in a dispatch; increase it for very cheap steps.
      progress: Whether to show steps, speed, remaining time and the last loss on a terminal.
      on_dispatch: Called as `on_dispatch(state, history)` after each dispatch, with the history of its steps.
      checkpoints: Where to save. If the folder has a checkpoint of a later step of this run, training resumes from it,
        and ends bit for bit as if it had never stopped: call `fit` again with the same arguments.
      validation: Held-out tasks to evaluate on at intervals, and when to stop early.
      metrics: Writers of the means over each dispatch and of the validations: `jaxmaml.metrics.jsonl(path)`,
        `jaxmaml.metrics.tensorboard(directory)`, or any `(step, {name: value}) -> None`.

    Returns:
      `(state, history)`: the last state, or with `validation` the state with the best score; `history` is a `MetaInfo`
      of NumPy arrays averaged over tasks, with a leading axis of the steps that this call took.

    Raises:
      NonFiniteError: If a query or support loss, the meta-gradient or the state after a step is not finite; it holds
        the last finite state.
      OutOfTasksError: If `Batches` end before the last step, a `ValueError`; it holds the last state.
      Interrupted: After Ctrl-C, at the end of the dispatch; it holds the last state.
      TypeError: If an argument is of the wrong kind or traced, or `sample_task` does not return a `Task`.
      ValueError: If a count is < 1, the checkpoint is of another run, or the padding of a `WeightedBatch` changes the
        loss.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> loss_fn = jaxmaml.mean_squared_error(model.apply)
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((1, 1))))
      >>> state, history = jaxmaml.fit(
      ...     learner, state, jaxmaml.tasks.sinusoid(), jax.random.key(1),
      ...     num_steps=200, num_tasks=25, progress=False)
      >>> int(state.step), history.query_loss.shape
      (200, (200,))

    References:
      Finn et al., 2017, algorithm 1, https://arxiv.org/abs/1703.03400
    """
    checks.learner(learner)
    checks.state(state)
    checks.not_traced("state", state)
    checks.not_traced("key", key)
    checks.positive_int("num_steps", num_steps)
    checks.positive_int("steps_per_dispatch", steps_per_dispatch)
    source = source_of(sample_task, key, num_tasks)
    source.check(learner, state)
    if on_dispatch is not None:
        checks.function("on_dispatch", on_dispatch)
    if checkpoints is not None:
        checkpointing.check(checkpoints)
    if validation is not None:
        validating.check(validation, learner, state)
    writers = check_writers(metrics)
    end = int(state.step) + num_steps
    # Each dispatch donates its input state, so that the caller's state is copied first.
    run = beginning(_copy(state), source.key)
    histories: list[MetaInfo] = []

    def report(values: dict[str, float]) -> None:
        for write in writers:
            write(int(run.state.step), values)

    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints is not None:
            made_by = _made_by(learner, state, source, validation)
            store = stack.enter_context(Store(checkpoints, state, made_by))
            run = store.latest(run)
            if store.goes_on:
                forget_after(writers, int(run.state.step))
        was_interrupted = stack.enter_context(interrupts.deferred())
        advance = stack.enter_context(progress_bar(int(run.state.step), end, enabled=progress))
        begin = end if validating.is_over(validation, run) else int(run.state.step)
        take = stack.enter_context(source.dispatches(learner, begin, end, steps_per_dispatch))
        try:
            while (first := int(run.state.step)) < end and not validating.is_over(validation, run):
                began = time.perf_counter()
                count, new, taken = take(run.state, min(steps_per_dispatch, end - first))
                run = run._replace(state=new)
                history, is_finite = _first(count, jax.device_get(taken))
                histories.append(history)
                if not is_finite.all():
                    raise _non_finite(new, histories, failed_at=int(np.argmin(is_finite)))
                values = _means(history)
                advance(count, ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items()))
                report(values | {"steps_per_second": count / (time.perf_counter() - began)})
                if on_dispatch is not None:
                    on_dispatch(_copy(new), history)
                if validation is not None and _is_due(validation.every, first, first + count, end):
                    run, values = validating.validated(learner, validation, run)
                    report(values)
                if store is not None and _is_due(store.every, first, first + count, end):
                    store.save(run._replace(state=_copy(run.state)))  # Written while the next dispatch overwrites it.
                if was_interrupted():
                    raise Interrupted(
                        f"Training was interrupted after outer step {int(run.state.step)}; this error's `state` and "
                        "`history` have what there is.",
                        run.state,
                        _joined(histories),
                    )
        except RanOutError as error:
            raise OutOfTasksError(str(error), run.state, _joined(histories) if histories else ()) from None
        finally:
            # Whether an early stop, an error or an interrupt has ended the run, its last state is saved.
            if store is not None:
                store.save(run)
    last = run.state if validation is None else run.result()
    return last, _joined(histories or [_no_history(learner, run.state, source)])


def _is_due(every: int, begin: int, step: int, end: int) -> bool:
    """Whether a multiple of `every` lies in `(begin, step]`, or the end is reached."""
    return step // every > begin // every or step == end


def _first(count: int, tree):
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def _means(history: MetaInfo) -> dict[str, float]:
    """The means over a dispatch, for the progress bar and the writers."""
    values = {"query_loss": _mean(history.query_loss)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(history.aux):
        if leaf.ndim == 1 and np.issubdtype(leaf.dtype, np.number):
            values[jax.tree_util.keystr(path, simple=True, separator="/") or "aux"] = _mean(leaf)
    return values | {"grad_norm": _mean(history.grad_norm)}


def _mean(values: Any) -> float:
    """The mean in float64, because NumPy sums half precision in half precision."""
    return float(np.mean(values, dtype=np.float64))


def _made_by(learner, state, source: Sampled | Fed, validation) -> dict[str, str | None]:
    """The fingerprints of this run, for its checkpoints."""
    tasks_of, evaluated, of = source.tasks, None, fingerprints.of_program
    # Another number of devices, or of tasks at once, changes no result beyond rounding: a run may go on elsewhere.
    alike = learner if learner.spec is None else learner.spec.replace(mesh=None, chunk_size=None)
    if validation is not None:
        evaluated = functools.partial(validating.evaluated, alike, validation._replace(chunk_size=None))
    return {
        "configuration": None if learner.spec is None else json.dumps(learner.spec.described()),
        "program": None if tasks_of is None else of(alike.update, state, jax.eval_shape(tasks_of, source.key)),
        "tasks": None if tasks_of is None else of(tasks_of, source.key),
        "start": fingerprints.of_arrays(state),
        "validation": None if evaluated is None else of(evaluated, state),
    }


def _no_history(learner, state, source: Sampled | Fed) -> MetaInfo:
    """The history of a call that takes no step, because the run had ended before."""
    shapes = source.no_history(learner, state)
    return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape[1:]), leaf.dtype), shapes)


def _copy(state: MetaState) -> MetaState:
    return jax.tree.map(jnp.copy, state)


def _non_finite(state: MetaState, histories: list[MetaInfo], failed_at: int) -> NonFiniteError:
    last = histories[-1]
    return NonFiniteError(
        f"The meta-loss became non-finite at outer step {int(state.step)}, or the step itself was: query loss "
        f"{last.query_loss[failed_at]}, support losses {last.support_loss[failed_at].tolist()}, norm of the "
        f"meta-gradient {last.grad_norm[failed_at]}. The state before it is this error's `state`; `history` ends with "
        "the step that failed. Usual causes: an inner step size that diverges, an outer one that is too large (clip "
        "its gradient), labels outside of 0 ... num_ways - 1, an inner rule whose derivative is not finite where a "
        "gradient is zero, or a norm or square root at zero in `loss_fn`.",
        state,
        _joined([*histories[:-1], _first(failed_at + 1, last)]),
    )


def _joined(histories: list[MetaInfo]) -> MetaInfo:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *histories)
