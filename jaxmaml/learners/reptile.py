"""Reptile."""

import dataclasses
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

    With `phi_i` the parameters after `num_inner_steps` on task `i`, the outer optimizer's gradient is
    `theta - mean_i phi_i`, so that `optax.sgd(epsilon)` gives `theta <- theta + epsilon mean_i (phi_i - theta)`. In the
    paper `epsilon` falls linearly to zero, `optax.sgd(optax.linear_schedule(1.0, 0.0, num_outer_steps))`, and the inner
    optimizer is Adam without momentum, `optax.adam(1e-3, b1=0)`. The query set is used for metrics only.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`.
      inner_optimizer: The optax transformation of inner gradients. It is not differentiated, so `eps_root` is not
        needed. Its state is initialised for each task (the released code passes Adam's second moment on to the next).
      outer_optimizer: See above.
      num_inner_steps: The number of inner steps in training; with 1, this is joint training.
      serial: Visit the tasks of a batch one after another, each from the parameters that the previous one led to (the
        paper's algorithm 1), instead of averaging them (algorithm 2). An outer step is then `num_tasks` updates, each
        of which `outer_optimizer` and its schedule count.
      **axes: The other axes of the family: see `jaxmaml.Axes`; `supports=jaxmaml.supports.minibatches(size)` is
        the paper's minibatch.
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
        loss_fn,
        inner_optimizer,
        outer_optimizer,
        num_inner_steps,
        fixed(axes, objective=objectives.displacement),
        "reptile",
    )
    return _serial(learner) if serial else learner


def _serial(learner: MetaLearner) -> MetaLearner:
    assert learner.spec is not None
    replace = learner.spec.replace
    spec = dataclasses.replace(learner.spec, replace=lambda **axes: _serial(replace(**axes)))
    return learner._replace(update=_one_by_one(learner), spec=spec)


def _one_by_one(learner: MetaLearner):
    def update(state: MetaState, tasks: Task) -> tuple[MetaState, MetaInfo]:
        checks.state(state)
        num_tasks = checks.tasks(tasks)
        singles = jax.tree.map(lambda leaf: leaf.reshape(num_tasks, 1, *leaf.shape[1:]), tasks)
        # Each update has its own step number, from which its random draws are derived.
        small = vary(state._replace(step=state.step * num_tasks), like=tasks)
        small, info = jax.lax.scan(learner.update, small, singles)
        norm = jnp.mean(info.grad_norm)
        whole = jax.tree.map(lambda leaf: leaf.reshape(num_tasks, *leaf.shape[2:]), info._replace(grad_norm=()))
        return small._replace(step=state.step + 1), whole._replace(grad_norm=norm)

    return update
