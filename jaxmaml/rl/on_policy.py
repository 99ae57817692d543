"""Outer steps on recorded rollouts, so that an outer optimizer can evaluate its objective again on the same ones."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks, keys, objectives, supports
from jaxmaml.types import MetaInfo, MetaLearner, MetaState, Spec, Supports, Task


def collect(learner: MetaLearner, state: MetaState, tasks: Task, key: chex.PRNGKey) -> Task:
    """Record what a learner collects in adapting to each task: the batch of every inner step, and that of the query.

    A learner with the axes `supports=jaxmaml.supports.stream()` and `queries=jaxmaml.supports.stream()` then sees the
    same batches: at the parameters that recorded them, its outer step is that of `learner`; at others, its objective is
    what the likelihood ratios of the surrogates make of the recorded batches.

    Args:
      learner: A learner with rollouts as its axes `supports` and `queries`.
      state: Its state.
      tasks: A batch of tasks, leaves `[num_tasks, ...]`, as `learner.update` takes it.
      key: From `jaxmaml.keys.from_seed(seed, state.step)` the batches are those of `learner.update`.
    Returns:
      `Task(support, query)`, the support's leaves `[num_tasks, num_inner_steps, ...]` and the query's
      `[num_tasks, num_inner_steps + 1, ...]`, that after 0, 1, ... inner steps. Where the objective sees the last one
      only, the others are copies of it.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If `supports` or `queries` of the learner draws nothing, so that there is nothing to record.
    """
    spec = _spec(learner)
    checks.state(state)
    num_tasks = checks.tasks(tasks)
    checks.prng_key(key)
    num_steps = spec.num_inner_steps
    support_batches, query_batches = (_drawn(spec, name) for name in ("supports", "queries"))
    sees_all = spec.axes.objective not in (None, objectives.last_step)

    def of_task(task: Task, key: chex.PRNGKey) -> Task:
        own = keys.of_task(key)
        inner = supports.planned(support_batches, task.support, num_steps, own.support_plan, own.support)
        outer = supports.planned(query_batches, task.query, num_steps + 1, own.query_plan, own.query)

        def observe(fast_params, step):
            seen = supports.batch_at(support_batches, inner, step, fast_params)
            return seen, supports.batch_at(query_batches, outer, step, fast_params) if sees_all else ()

        fast_params, trace = learner.adapt(state, task.support, key=key, observe=observe)
        seen, query = trace.observed
        if not sees_all:
            last = supports.batch_at(query_batches, outer, num_steps, fast_params)
            query = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (num_steps + 1, *leaf.shape)), last)
        return Task(jax.tree.map(lambda leaf: leaf[:num_steps], seen), query)

    return jax.lax.stop_gradient(jax.vmap(of_task)(tasks, jax.random.split(key, num_tasks)))


def on_policy(learner: MetaLearner, *, num_epochs: int = 1) -> MetaLearner:
    """Build the learner that takes its outer steps on recorded rollouts.

    Its `update` records the rollouts of a batch of tasks, and takes `num_epochs` outer steps on them. It is `learner`'s
    where `num_epochs` is 1 and the outer optimizer looks at gradients only; an optimizer that evaluates the objective
    at other parameters, such as `jaxmaml.rl.trust_region`, sees the same rollouts there, and not new ones.

    Args:
      learner: A learner with rollouts as its axes `supports` and `queries`.
      num_epochs: Outer steps on the same rollouts; 5 in ProMP, with the loss `jaxmaml.rl.clipped`.
    Returns:
      A learner with the `init` and `adapt` of `learner`. The metrics of its `update` are those of the first epoch, on
      the policies that recorded.
    Raises:
      TypeError: If `learner` is none.
      ValueError: If `num_epochs` < 1, or `supports` or `queries` of the learner draws nothing.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> policy = jaxmaml.rl.gaussian(lambda w, x: x @ w)
      >>> rollout = jaxmaml.rl.rollout(
      ...     jaxmaml.tasks.navigation.environment(), policy, num_trajectories=4, horizon=5)
      >>> learner = jaxmaml.rl.on_policy(jaxmaml.maml(
      ...     jaxmaml.rl.lvc(policy), optax.sgd(0.02), jaxmaml.rl.trust_region(0.01), num_inner_steps=1,
      ...     supports=jaxmaml.supports.collect(rollout), queries=jaxmaml.supports.collect(rollout)))
      >>> state = learner.init({"mean": jnp.zeros((2, 2)), "log_std": jnp.full(2, -2.0)})
      >>> state, history = jaxmaml.fit(
      ...     learner, state, jaxmaml.tasks.navigation.goals(), jax.random.key(0),
      ...     num_steps=2, num_tasks=3, progress=False)
      >>> history.aux["return"].shape
      (2,)

    References:
      Rothfuss et al., 2019, https://arxiv.org/abs/1810.06784
    """
    spec = _spec(learner)
    checks.positive_int("num_epochs", num_epochs)
    for name in ("supports", "queries"):
        _drawn(spec, name)
    return _of(learner, spec, num_epochs)


def _of(learner: MetaLearner, spec: Spec, num_epochs: int) -> MetaLearner:
    replay = spec.replace(supports=supports.stream(), queries=supports.stream())

    def update(state: MetaState, tasks: Task) -> tuple[MetaState, MetaInfo]:
        key = keys.from_seed(spec.axes.seed, state.step)
        recorded = collect(learner, state, tasks, key)
        new, info = replay.update(state, recorded)
        for _ in range(num_epochs - 1):
            new, _ = replay.update(new, recorded)
        return new._replace(step=state.step + 1), info

    def other(**axes: Any) -> MetaLearner:
        replaced = spec.replace(**axes)
        return _of(replaced, _spec(replaced), num_epochs)

    return learner._replace(update=update, spec=dataclasses.replace(spec, replace=other))


def _spec(learner: Any) -> Spec:
    checks.learner(learner)
    if learner.spec is None:
        raise TypeError("`learner` must be from one of jaxmaml's factories, got one of three functions.")
    return learner.spec


def _drawn(spec: Spec, name: str) -> Supports:
    """The axis `name` of the learner, which must draw its batches."""
    chosen, draws = supports.complete(name, getattr(spec.axes, name))
    if not draws:
        raise ValueError(
            f"`{name}` of the learner must collect rollouts, as {name}=jaxmaml.supports.collect(rollout); this one "
            "draws nothing."
        )
    return chosen
