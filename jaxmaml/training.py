"""The training loop: many outer steps in one dispatch, with the sampler inside."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
from rich import progress as rich_progress

from jaxmaml import checks
from jaxmaml.sampling import Sampler, as_pytree
from jaxmaml.types import MetaInfo, MetaLearner, MetaState

_SECONDS_BETWEEN_LINES = 30.0


class NonFiniteError(FloatingPointError):
    """The meta-loss, its gradient or the new parameters were not finite; training stopped before that step.

    Attributes:
      state: The last finite state.
      history: Metrics up to and including the step that failed.
    """

    def __init__(self, message: str, state: MetaState, history: MetaInfo):
        super().__init__(message)
        self.state = state
        self.history = history


def fit(
    learner: MetaLearner,
    state: MetaState,
    sample_task: Sampler,
    key: chex.PRNGKey,
    *,
    num_steps: int,
    num_tasks: int,
    steps_per_dispatch: int = 100,
    progress: bool = True,
    on_dispatch: Callable[[MetaState, MetaInfo], None] | None = None,
) -> tuple[MetaState, MetaInfo]:
    """Take `num_steps` outer steps, each on `num_tasks` fresh tasks.

    Sampling, outer step and metrics run on the device, `steps_per_dispatch` steps in one `lax.scan`. The
    tasks of outer step `t` are drawn from `fold_in(key, t)`, with `t` counted by `state.step`: training in
    two halves, or with other dispatches, gives the same bits.

    Args:
      learner: What `jaxmaml.maml` or another factory returned.
      state: Where to start: `learner.init(params)`, or a state from an earlier call.
      sample_task: `key -> Task`. One that holds large arrays should be a pytree, as
        `jaxmaml.tasks.image_episodes` returns, so that they are passed and not compiled in.
      key: Draws the tasks.
      num_steps: Outer steps to take.
      num_tasks: Tasks in an outer step (the meta-batch).
      steps_per_dispatch: Steps between two looks from the host; raise it for very cheap steps.
      progress: Show steps, speed, time left and the last loss on a terminal.
      on_dispatch: Called as `on_dispatch(state, history)` after each dispatch, with its part of the
        history: the place to validate, or to save what an interruption would lose.

    Returns:
      `(state, history)`; `history` is a `MetaInfo` of NumPy arrays averaged over tasks, with a leading
      axis of `num_steps`.

    Raises:
      NonFiniteError: If a meta-loss, its gradient or the parameters after a step are not finite; it holds the last
        finite state.
      TypeError: If an argument is of the wrong kind or traced, or `sample_task` does not return a `Task`.
      ValueError: If a count is < 1.

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
    checks.function("sample_task", sample_task)
    checks.prng_key(key)
    checks.positive_int("num_steps", num_steps)
    checks.positive_int("num_tasks", num_tasks)
    checks.positive_int("steps_per_dispatch", steps_per_dispatch)
    if on_dispatch is not None:
        checks.function("on_dispatch", on_dispatch)
    sample_task = as_pytree(sample_task)

    state = _copy(state)  # Each dispatch overwrites the state it is given; the caller's is the caller's.
    histories = []
    with _progress_bar(num_steps, enabled=progress) as advance:
        for start in range(0, num_steps, steps_per_dispatch):
            count = min(steps_per_dispatch, num_steps - start)
            state, (history, is_finite) = _take_steps(learner, state, sample_task, key, count, num_tasks)
            history, is_finite = jax.device_get((history, is_finite))
            histories.append(history)
            if not is_finite.all():
                raise _non_finite(state, histories, failed_at=int(np.argmin(is_finite)))
            advance(count, history)
            if on_dispatch is not None:
                on_dispatch(_copy(state), history)
    return state, _joined(histories)


@functools.partial(jax.jit, static_argnums=(0, 4, 5), donate_argnums=1)
def _take_steps(learner, state, sample_task, key, num_steps, num_tasks):
    def step(state: MetaState, _):
        keys = jax.random.split(jax.random.fold_in(key, state.step), num_tasks)
        tasks = jax.vmap(sample_task)(keys)
        new_state, info = learner.update(state, tasks)
        means = jax.tree.map(lambda x: jnp.mean(x, 0), info._replace(grad_norm=info.grad_norm[None]))
        # A step that is not finite is not taken, so that the state it started from survives.
        checked = jax.tree.leaves((means.query_loss, means.grad_norm, new_state.params, new_state.rule_params))
        is_finite = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in checked]))
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state), (means, is_finite)

    return jax.lax.scan(step, state, length=num_steps)


def _copy(state: MetaState) -> MetaState:
    return jax.tree.map(jnp.copy, state)


def _non_finite(state: MetaState, histories: list[MetaInfo], failed_at: int) -> NonFiniteError:
    last = histories[-1]
    return NonFiniteError(
        f"The meta-loss became non-finite at outer step {int(state.step)}, or the step itself was: query loss "
        f"{last.query_loss[failed_at]}, norm of the meta-gradient {last.grad_norm[failed_at]}. The state before it is "
        "this error's `state`, and `history` ends with it. Usual causes: an inner step size that diverges, an outer "
        "one that is too large (clip its gradient), or a norm or square root at zero in `loss_fn`.",
        state,
        _joined([*histories[:-1], jax.tree.map(lambda x: x[: failed_at + 1], last)]),
    )


def _joined(histories: list[MetaInfo]) -> MetaInfo:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *histories)


@contextlib.contextmanager
def _progress_bar(num_steps: int, enabled: bool) -> Iterator[Callable[[int, MetaInfo], None]]:
    """A live bar on a terminal; in a log file, a line now and then."""
    columns = (
        rich_progress.TextColumn("outer step"),
        rich_progress.MofNCompleteColumn(),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[speed]}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[metrics]}"),
    )
    with rich_progress.Progress(*columns, disable=not enabled) as bar:
        task_id = bar.add_task("fit", total=num_steps, metrics="compiling", speed="")
        began = last_line = time.monotonic()

        def advance(count: int, history: MetaInfo) -> None:
            nonlocal last_line
            metrics = f"query loss {history.query_loss[-1]:.4f}"
            if isinstance(history.aux, dict) and "accuracy" in history.aux:
                metrics += f", accuracy {100 * history.aux['accuracy'].mean():.1f}%"
            task, now = bar.tasks[0], time.monotonic()
            done = task.completed + count
            speed = f"{done / (now - began):.1f} steps/s"
            bar.update(task_id, advance=count, metrics=metrics, speed=speed)
            if enabled and not bar.console.is_terminal and now - last_line > _SECONDS_BETWEEN_LINES:
                last_line = now
                bar.console.print(f"outer step {done:.0f}/{num_steps}, {speed}, {metrics}")

        yield advance
