"""What a loss sees at each inner step: all of a task's data, a minibatch, the next slice of a stream, or rollouts.

The axis `supports` chooses the batches of the inner steps from `task.support`, and the axis `queries` those of the
outer loss from `task.query`. Both take a `Supports(plan, at)`, or a bare function, which is taken as `at`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmaml import checks, keys
from jaxmaml.types import COLLECTED_BATCH, PyTree, Supports, WeightedBatch


class Keyed(NamedTuple):
    """A batch and the key of its inner step: what `loss_fn` gets with `jaxmaml.supports.keyed()`.

    Attributes:
      batch: The batch.
      key: A PRNG key, for dropout or for noise.
    """

    batch: Any
    key: chex.PRNGKey


def whole() -> Supports:
    """Build the default: the same data at every step."""
    return Supports(plan=lambda data, num_steps: (), at=lambda plan, data, step, fast_params: data)


def minibatches(size: int) -> Supports:
    """Build minibatches: consecutive batches of random permutations of the examples.

    Every example is seen once before any is seen again. The permutations are drawn once for each task, in `plan`. Of a
    `WeightedBatch`, only the examples of positive weight are drawn.

    Args:
      size: The number of examples in a batch; at most the number of examples.
    Returns:
      `Supports`, which needs a key.
    Raises:
      ValueError: If `size` < 1; in use, if it is larger than the number of examples, or the leaves of the data have
        different lengths.
    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.reptile(
      ...     lambda w, batch: jnp.mean((w - batch) ** 2), optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=5,
      ...     supports=jaxmaml.supports.minibatches(2))
      >>> state = learner.init(jnp.zeros(()))
      >>> state, info = learner.update(state, jaxmaml.Task(jnp.ones((4, 6)), jnp.ones((4, 6))))

    References:
      Nichol et al., 2018, https://arxiv.org/abs/1803.02999
    """
    checks.positive_int("size", size)

    def plan(data, num_steps, key):
        num_examples = checks.num_examples("`supports.minibatches`", data)
        if size > num_examples:
            raise ValueError(f"`size` of `supports.minibatches` is {size}, but the data has {num_examples} examples.")
        if isinstance(data, WeightedBatch):
            return _real_rows(data.weights, num_steps * size, key).reshape(num_steps, size)
        rounds = jax.random.split(key, max(1, math.ceil(num_steps * size / num_examples)))
        order = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(rounds).reshape(-1)
        return order[: num_steps * size].reshape(num_steps, size)

    def at(order, data, step, fast_params):
        return jax.tree.map(lambda leaf: jnp.take(leaf, order[step], axis=0), data)

    return Supports(plan, at)


def _real_rows(weights: jax.Array, count: int, key: chex.PRNGKey) -> jax.Array:
    """`count` rows of positive weight, by permutations one after the other; their number is known in the run only."""
    is_real = weights > 0
    num_real = jnp.maximum(jnp.sum(is_real), 1)
    # One permutation for each draw is enough even where a single row is real.
    scores = jnp.where(is_real[None], jax.random.uniform(key, (count, weights.shape[0])), 2.0)
    position = jnp.arange(count)
    return jnp.argsort(scores, axis=1)[position // num_real, position % num_real]


def stream() -> Supports:
    """Build a stream: the batch of step `k` is slice `k` along the leading axis of every leaf.

    As `supports` it needs a slice for each inner step. As `queries` it is asked for the slices `0 ... K`, because the
    query loss after `k` inner steps is that of slice `k`: with the same data for both, each slice is evaluated before
    the step that learns from it.

    Returns:
      `Supports`, which needs no key.
    Raises:
      ValueError: In use, if there are fewer slices than steps, or leaves have different numbers of slices.
    Example:
      Online learning of a mean, where every observation is predicted before it is seen:

      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.maml(
      ...     lambda w, chunk: jnp.mean((w - chunk) ** 2), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=3,
      ...     supports=jaxmaml.supports.stream(), queries=jaxmaml.supports.stream(),
      ...     objective=jaxmaml.objectives.online())
      >>> chunks = jnp.ones((4, 4, 2))        # 4 tasks, 4 chunks of 2 observations
      >>> state, info = learner.update(learner.init(jnp.zeros(())), jaxmaml.Task(chunks, chunks))
      >>> info.support_loss.shape
      (4, 3)
    """

    def plan(data, num_steps):
        # A traced index past the end would be clamped silently.
        slices = checks.num_examples("`supports.stream`", data)
        if slices < num_steps:
            raise ValueError(
                f"`supports.stream` needs a slice for each of {num_steps} steps along the leading axis of the data, "
                f"which has {slices}. A stream of queries is also read after the last inner step, and so needs one "
                "more slice than there are inner steps."
            )
        return ()

    def at(plan, data, step, fast_params):
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, step, keepdims=False), data)

    return Supports(plan, at)


class Collected(NamedTuple):
    """`at` of `collect`: rollouts of the current parameters."""

    rollout: Callable[[PyTree, Any, chex.PRNGKey], Any]

    def __call__(self, plan, data, step, fast_params, key):
        fast_params = jax.lax.stop_gradient(fast_params)
        used, _ = keys.uses_key(lambda key: self.rollout(fast_params, data, key), key)
        if not used:
            raise ValueError(
                "`rollout` of `supports.collect` does not use its key, so that every step and every task would collect "
                "the same noise: draw by jax.random, not by NumPy."
            )
        batch = self.rollout(fast_params, data, key)
        checks.batch("rollout(fast_params, data, key)", batch)
        return checkpoint_name(jax.lax.stop_gradient(batch), COLLECTED_BATCH)


def collect(rollout: Callable[[PyTree, Any, chex.PRNGKey], Any]) -> Supports:
    """Build on-policy data: the batch of a step is what the current fast parameters collect.

    No gradient flows through the sampling: the batch is a constant, and the loss has to account for the dependence of
    its distribution on the parameters, as `jaxmaml.rl.dice` does. The batch is kept for the derivative, whatever is
    rematerialised, so that the backward pass reruns no rollout. `remat="recursive"` would, and is refused.

    Args:
      rollout: `(fast_params, data, key) -> batch`, where `data` is the task's support (or query): for example the
        goal of the task. `fast_params` are all parameters, as `loss_fn` gets them.
    Returns:
      `Supports`, which needs a key.
    Raises:
      TypeError: If `rollout` is not a function of three arguments.
      ValueError: In use, if `rollout` does not depend on its key, or collects nothing.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> def rollout(mean, goal, key):               # a bandit: actions around a mean, rewarded near a goal
      ...     actions = mean + 0.1 * jax.random.normal(key, (20,))
      ...     return actions, -((actions - goal) ** 2)
      >>> def loss_fn(mean, batch):                   # the likelihood-ratio surrogate
      ...     actions, rewards = batch
      ...     log_prob = -((actions - mean) ** 2) / (2 * 0.1**2)
      ...     return -jnp.mean(log_prob * (rewards - jnp.mean(rewards)))
      >>> learner = jaxmaml.maml(
      ...     loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1,
      ...     supports=jaxmaml.supports.collect(rollout), queries=jaxmaml.supports.collect(rollout))
      >>> goals = jnp.array([1.0, -1.0])
      >>> state, info = learner.update(learner.init(jnp.zeros(())), jaxmaml.Task(goals, goals))
      >>> mean, _ = learner.adapt(state, jnp.array(1.0), key=jax.random.key(0))
      >>> bool(mean > 0.1)
      True
    """
    keys.takes_all("rollout", rollout, ("fast_params", "data", "key"), optional=0)
    return Supports(lambda data, num_steps: (), Collected(rollout))


def keyed(supports: Supports | Callable[..., Any] | None = None) -> Supports:
    """Build batches with the key of their step, for dropout: `loss_fn` gets `Keyed(batch, key)`.

    Args:
      supports: What chooses the batch, such as `minibatches(5)`; all of the data by default.
    Returns:
      `Supports`, which needs a key.
    Raises:
      TypeError: If `supports` is no `Supports` or function.
    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> def loss_fn(w, keyed):
      ...     kept = jax.random.bernoulli(keyed.key, 0.5, w.shape)
      ...     return jnp.mean((2.0 * kept * w - keyed.batch) ** 2)
      >>> learner = jaxmaml.maml(
      ...     loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=2,
      ...     supports=jaxmaml.supports.keyed(), queries=jaxmaml.supports.keyed())
      >>> tasks = jaxmaml.Task(jnp.ones((4, 3)), jnp.ones((4, 3)))
      >>> state, info = learner.update(learner.init(jnp.ones(3)), tasks)
    """
    inner, _ = complete("supports", supports)

    def at(plan, data, step, fast_params, key):
        batch_key, key = jax.random.split(key)
        return Keyed(inner.at(plan, data, step, fast_params, batch_key), key)

    return Supports(inner.plan, at)


def complete(name: str, supports: Any) -> tuple[Supports, bool]:
    """Return `supports` with functions of all arguments, and whether it needs a key; `None` is `whole()`.

    Raises:
      TypeError: If it is neither `Supports` nor a function, or a function takes another number of arguments.
    """
    if supports is None:
        supports = whole()
    elif not isinstance(supports, Supports):
        if any(supports is builder for builder in (minibatches, stream, collect, keyed, whole)):
            call = f"jaxmaml.supports.{supports.__name__}"
            raise TypeError(f"`{name}` must be what {call}(...) returns, got that function itself.")
        if not callable(supports):
            raise TypeError(
                f"`{name}` must be a jaxmaml.supports.Supports, such as jaxmaml.supports.minibatches(5), or a function "
                f"(plan, data, step, fast_params, key) -> batch; got {type(supports).__name__}."
            )
        supports = Supports(lambda data, num_steps: (), supports)
    plan, plan_draws = keys.takes_all(f"{name}.plan", supports.plan, ("data", "num_steps", "key"))
    at, draws = keys.takes_all(f"{name}.at", supports.at, ("plan", "data", "step", "fast_params", "key"))
    return Supports(plan, at), plan_draws or draws


class Planned(NamedTuple):
    """The data of one task, and what `plan` made of it, as a pytree.

    Attributes:
      plan: What `Supports.plan` returned.
      data: The task's support or query.
      key: The key of its batches; `None` where nothing is drawn.
    """

    plan: Any
    data: Any
    key: Any


def planned(supports: Supports, data: Any, num_steps: int, plan_key: Any, key: Any) -> Planned:
    """Plan the batches of the steps `0 ... num_steps - 1` of one task, outside of the loop over steps.

    `supports` comes from `complete`; the keys, of the plan and of the batches, are `None` where nothing is drawn.
    A plan may refuse the data with a `ValueError`, as `stream` does if there are too few slices.
    """
    return Planned(supports.plan(data, num_steps, plan_key), data, key)


def batch_at(supports: Supports, of_task: Planned, step: Any, fast_params: PyTree) -> Any:
    """The batch of one step for the loss function, drawn with `fold_in(key, step)`.

    `step` may be traced, and is at most the last that was planned; `fast_params` are the whole parameters of this step.
    """
    return supports.at(of_task.plan, of_task.data, step, fast_params, keys.at_step(of_task.key, step))
