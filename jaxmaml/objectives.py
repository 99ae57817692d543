"""Outer objectives: the scalar that an outer step minimises.

An objective is `(inner_loop, query_loss) -> ((meta, task, key, step) -> (value, Outcome))`. The scalar `value` is
differentiated with respect to `meta = (params, rule_params)`, `step` counts outer steps, and
`query_loss(params, task.query, k) -> (loss, aux)` evaluates parameters after `k` inner steps, `num_inner_steps` by
default, on the batch that the axis `queries` chooses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.jax_internals import vary
from jaxmaml.types import Outcome, Task

#: See the module's docstring.
Objective = Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., tuple[jax.Array, Outcome]]]


def last_step(inner_loop, query_loss):
    """The query loss after the last inner step (Finn et al., 2017, https://arxiv.org/abs/1703.03400)."""

    def value(meta, task: Task, key, step):
        fast_params, trace = inner_loop(meta, task.support, key=key)
        loss, aux = query_loss(fast_params, task.query)
        return loss, Outcome(loss, trace.support_loss, aux)

    return value


def multi_step(weights: Callable[[jax.Array], jax.Array]) -> Objective:
    r"""Build the weighted sum of the query losses after every inner step, `sum_k w_k L(theta_k, query)`, k = 1 ... K.

    The query loss of a step with weight zero is not computed. The reported query loss is that after the last step.

    Args:
      weights: `outer step -> [num_inner_steps]`, the weights of the losses after 1, 2, ... inner steps.
    Returns:
      An objective, for `maml(..., objective=...)` and the other factories.
    Raises:
      ValueError: In use, if the weights are not `[num_inner_steps]`.
    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.maml(
      ...     lambda w, batch: jnp.mean((w - batch) ** 2), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=2,
      ...     objective=jaxmaml.objectives.multi_step(lambda step: jnp.array([0.5, 0.5])))
      >>> state = learner.init(jnp.zeros(()))
      >>> state, info = learner.update(state, jaxmaml.Task(jnp.ones((4, 3)), jnp.ones((4, 3))))

    References:
      Antoniou et al., 2019, https://arxiv.org/abs/1810.09502
    """
    checks.function("weights", weights)
    return _weighted(weights, first=1)


def online(weights: Callable[[jax.Array], jax.Array] | None = None) -> Objective:
    r"""Build the weighted sum of the query losses before and after every inner step, `sum_k w_k L(theta_k, query_k)`.

    Here k = 0 ... K, where `multi_step` has 1 ... K. With `queries=jaxmaml.supports.stream()` the term of step k is the
    loss of chunk k before the step that learns from it: the regret of an online learner. The reported query loss is
    that after the last step; `info.diagnostics` has all of them, `[num_tasks, num_inner_steps + 1]`.

    Args:
      weights: `outer step -> [num_inner_steps + 1]`; by default all are `1 / (num_inner_steps + 1)`.
    Returns:
      An objective.
    Raises:
      ValueError: In use, if the weights are not `[num_inner_steps + 1]`.
    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.maml(
      ...     lambda w, chunk: jnp.mean((w - chunk) ** 2), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=2,
      ...     supports=jaxmaml.supports.stream(), queries=jaxmaml.supports.stream(),
      ...     objective=jaxmaml.objectives.online())
      >>> chunks = jnp.ones((4, 3, 5))        # 4 tasks, 3 chunks of 5 numbers
      >>> state, info = learner.update(learner.init(jnp.zeros(())), jaxmaml.Task(chunks, chunks))
      >>> info.diagnostics.shape
      (4, 3)

    References:
      Sun et al., 2024, https://arxiv.org/abs/2407.04620 (test-time training: each chunk is scored, then learned)
    """
    if weights is not None:
        checks.function("weights", weights)
    return _weighted(weights, first=0)


def _weighted(weights: Callable[[jax.Array], jax.Array] | None, first: int) -> Objective:
    """The weighted sum of the query losses after `first ... K` inner steps; without `weights`, their mean."""

    def objective(inner_loop, query_loss):
        def value(meta, task: Task, key, step):
            of_steps = None if weights is None else jnp.asarray(weights(step))
            if of_steps is not None and of_steps.ndim != 1:
                raise ValueError(f"`weights(step)` must be a vector, got shape {of_steps.shape}.")

            def evaluated(fast_params, index):
                def skip(*args):
                    shapes = jax.eval_shape(query_loss, *args)
                    return vary(jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), shapes), like=args)

                if of_steps is None or isinstance(index, int):  # The last step's is reported, whatever its weight.
                    return query_loss(fast_params, task.query, index)
                counts = (index >= first) & (of_steps[index - first] != 0)
                return jax.lax.cond(counts, query_loss, skip, fast_params, task.query, index)

            _, trace = inner_loop(meta, task.support, key=key, observe=evaluated)
            losses, aux = trace.observed
            number = losses.shape[0] - first
            share = jnp.full(number, 1 / number) if of_steps is None else of_steps
            if share.shape != (number,):
                raise ValueError(
                    f"`weights(step)` must be one for each of the query losses after {first} ... {losses.shape[0] - 1} "
                    f"inner steps, of shape {(number,)}; got {share.shape}."
                )
            outcome = Outcome(losses[-1], trace.support_loss, jax.tree.map(lambda a: a[-1], aux))
            total = jnp.dot(share.astype(losses.dtype), losses[first:])
            return total, outcome if first else outcome._replace(diagnostics=losses)

        return value

    return objective


def annealed(num_inner_steps: int, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    r"""Build the weights of MAML++: equal at first, and zero except for the last step after `num_steps` outer steps.

    At outer step `t < num_steps`, with `S = num_inner_steps`, every inner step before the last has the weight
    `max(1/S (1 - t / num_steps), 0.03 / S)`, and the last has what remains of 1.

    Args:
      num_inner_steps: `S`; >= 1.
      num_steps: Outer steps until only the last step counts; >= 1.
    Returns:
      `step -> [num_inner_steps]`.
    Example:
      >>> import jaxmaml
      >>> weights = jaxmaml.objectives.annealed(num_inner_steps=4, num_steps=10)
      >>> weights(0).tolist(), weights(10).tolist()
      ([0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0])

    References:
      Antoniou et al., 2019, section 4, https://arxiv.org/abs/1810.09502; its released code for the floor of 0.03
    """
    checks.positive_int("num_inner_steps", num_inner_steps)
    checks.positive_int("num_steps", num_steps)

    def weights(step):
        early = jnp.maximum((1.0 - step / num_steps) / num_inner_steps, 0.03 / num_inner_steps)
        early = jnp.where(step < num_steps, early, 0.0)
        earlier = jnp.broadcast_to(early, (num_inner_steps - 1,))
        return jnp.append(earlier, 1.0 - jnp.sum(earlier))

    return weights


def displacement(inner_loop, query_loss):
    r"""`1/2 ||theta - phi||^2` with `phi` the adapted parameters taken as constants.

    Its gradient is `theta - phi`, so `optax.sgd(epsilon)` moves `theta` to `theta + epsilon mean(phi - theta)`.
    The inner loop is not differentiated (Nichol et al., 2018, https://arxiv.org/abs/1803.02999).
    """

    def value(meta, task: Task, key, step):
        fast_params, trace = inner_loop(jax.lax.stop_gradient(meta), task.support, key=key)
        loss, aux = query_loss(fast_params, task.query)
        return _half_square(meta[0], fast_params), Outcome(loss, trace.support_loss, aux)

    return value


def chaser(num_steps: int) -> Objective:
    r"""Build the chaser loss: `1/2 ||phi_K - phi_{K+s}||^2`, where the leader `phi_{K+s}` is a constant.

    The leader takes `s = num_steps` further inner steps from `phi_K`, on support and query together: steps
    `K ... K + s - 1` of the inner rule, which keeps its state.

    Args:
      num_steps: `s`; >= 1.
    Returns:
      An objective.
    References:
      Kim et al., 2018, section 4, https://arxiv.org/abs/1806.03836
    """
    checks.positive_int("num_steps", num_steps)
    return Chaser(num_steps)


class Chaser(NamedTuple):
    """The objective `chaser(num_steps)`, which needs support and query as two batches of examples."""

    num_steps: int

    def __call__(self, inner_loop, query_loss):
        def value(meta, task: Task, key, step):
            both = jax.tree.map(lambda s, q: jnp.concatenate([s, q]), task.support, task.query)
            fast_params, trace, leader = inner_loop(meta, task.support, key=key, then=(both, self.num_steps))
            loss, aux = query_loss(fast_params, task.query)
            return _half_square(fast_params, leader), Outcome(loss, trace.support_loss, aux)

        return value


def before_adaptation(inner_loop, query_loss):
    """The query loss before any inner step: joint training on all tasks, for baselines.

    Where adaptation has a `start`, the loss is evaluated there.
    """

    def value(meta, task: Task, key, step):
        params, trace = inner_loop(meta, task.support, num_inner_steps=0, key=key)
        loss, aux = query_loss(params, task.query, 0)
        return loss, Outcome(loss, trace.support_loss, aux)

    return value


def _half_square(params, constants) -> jax.Array:
    constants = jax.lax.stop_gradient(constants)
    return 0.5 * optax.tree.norm(jax.tree.map(jnp.subtract, params, constants), squared=True)
