"""Reptile."""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks, objectives
from jaxmaml.core.learner import make_learner
from jaxmaml.jax_internals import vary
from jaxmaml.options import Axes, fixed
from jaxmaml.types import InnerRule, LossFn, MetaInfo, MetaLearner, MetaState, Task


def reptile(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    serial: bool = False,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation by moving it towards the adapted parameters of each task.

    With `phi_i` the parameters after `num_inner_steps` on task `i`, the outer optimizer gets `theta - mean_i phi_i`
    for a gradient; `optax.sgd(epsilon)` then gives `theta <- theta + epsilon mean_i (phi_i - theta)`. The paper lets
    `epsilon` fall linearly to zero, `optax.sgd(optax.linear_schedule(1.0, 0.0, num_outer_steps))`, and
    has Adam inside, without momentum: `optax.adam(1e-3, b1=0)`. The query set is only reported on.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: Descends the support loss; never differentiated, so `eps_root` is not needed. Its state
        starts afresh on each task (the released code lets Adam's second moment pass from task to task).
      outer_optimizer: See above.
      num_inner_steps: In training; > 1, or this is joint training.
      serial: Visit the tasks of a batch one after another, each from where the one before left (the paper's
        algorithm 1), instead of averaging them (its algorithm 2). An outer step then is `num_tasks` small ones, which
        `outer_optimizer` and its schedule count one by one.
      **axes: The other axes of the family: see `jaxmaml.Axes`; `inner_batch_size` is the paper's minibatch.
    Returns:
      A `MetaLearner`, as `jaxmaml.maml` does.
    Raises:
      TypeError, ValueError: As `jaxmaml.maml`.
    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.reptile(
      ...     lambda w, batch: jnp.mean((w - batch) ** 2), optax.adam(1e-3, b1=0), optax.sgd(1.0), num_inner_steps=5)
      >>> state = learner.init(jnp.zeros(()))
      >>> state, info = learner.update(state, jaxmaml.Task(jnp.ones((4, 3)), jnp.ones((4, 3))))
      >>> round(float(state.params), 3)
      0.005

    References:
      Nichol et al., 2018, https://arxiv.org/abs/1803.02999
    """
    checks.boolean("serial", serial)
    learner = make_learner(
        loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, fixed(axes, objective=objectives.displacement)
    )
    return learner._replace(update=_one_by_one(learner)) if serial else learner


def _one_by_one(learner: MetaLearner):
    def update(state: MetaState, tasks: Task) -> tuple[MetaState, MetaInfo]:
        checks.state(state)
        num_tasks = checks.tasks(tasks)
        singles = jax.tree.map(lambda leaf: leaf.reshape(num_tasks, 1, *leaf.shape[1:]), tasks)
        # Small steps have numbers of their own, since what is random in them is drawn by these.
        small = vary(state._replace(step=state.step * num_tasks), like=tasks)
        small, info = jax.lax.scan(learner.update, small, singles)
        norm = jnp.mean(info.grad_norm)
        whole = jax.tree.map(lambda leaf: leaf.reshape(num_tasks, *leaf.shape[2:]), info._replace(grad_norm=()))
        return small._replace(step=state.step + 1), whole._replace(grad_norm=norm)

    return update
