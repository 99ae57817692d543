"""The outer loop: the meta-loss over a batch of tasks and the outer step that descends it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmaml import checks
from jaxmaml.inner_loop import make_inner_loop
from jaxmaml.query_chunks import mean_over_chunks
from jaxmaml.task_axis import value_and_mean_grad
from jaxmaml.types import InnerRule, LossFn, MetaInfo, MetaLearner, MetaState, PyTree, Task


def make_learner(
    loss_fn: LossFn,
    rule: InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    derivative: str,
    chunk_size: int | str | None,
    query_chunk_size: int | None,
    mesh: Mesh | None,
    remat: str,
    matmul_precision: str | None,
) -> MetaLearner:
    """Assemble a learner from a choice on each axis; its factory has checked the arguments."""
    loss_fn = _with_precision(checks.with_checked_output(loss_fn), matmul_precision)
    query_loss_fn = mean_over_chunks(loss_fn, query_chunk_size)
    inner_loop = make_inner_loop(loss_fn, rule, derivative, remat)
    outer = optax.with_extra_args_support(outer_optimizer)
    training_steps = num_inner_steps

    def init(params: PyTree) -> MetaState:
        params = checks.params(params)
        rule_params = checks.floating("rule_params", rule.init_params(params))
        return MetaState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            rule_params=rule_params,
            opt_state=outer.init(_pack(params, rule_params)),
        )

    def adapt(state: MetaState, support: Any, *, num_inner_steps: int | None = None, observe=None):
        checks.state(state)
        checks.batch("support", support)
        steps = training_steps if num_inner_steps is None else num_inner_steps
        checks.positive_int("num_inner_steps", steps)
        if observe is not None:
            checks.function("observe", observe)
        return inner_loop(state.params, state.rule_params, support, steps, observe)

    def task_loss(meta: tuple[PyTree, PyTree], task: Task):
        params, rule_params = meta
        fast_params, trace = inner_loop(params, rule_params, task.support, training_steps)
        loss, aux = query_loss_fn(fast_params, task.query)
        return loss, (loss, trace.support_loss, aux)

    mean_gradient = value_and_mean_grad(task_loss, chunk_size, mesh)

    def update(state: MetaState, tasks: Task) -> tuple[MetaState, MetaInfo]:
        checks.state(state)
        checks.tasks(tasks)
        fresh = jax.eval_shape(lambda params: init(params), state.params)
        checks.same_structure("state.rule_params", state.rule_params, fresh.rule_params)
        checks.same_structure("state.opt_state", state.opt_state, fresh.opt_state)
        (query_loss, support_loss, aux), grads = mean_gradient((state.params, state.rule_params), tasks)
        packed, grads = _pack(state.params, state.rule_params), _pack(*grads)
        updates, opt_state = outer.update(grads, state.opt_state, packed, value=jnp.mean(query_loss))
        params, rule_params = _unpack(optax.apply_updates(packed, updates), state.rule_params)
        info = MetaInfo(query_loss, support_loss, grad_norm=optax.tree.norm(grads), aux=aux)
        return MetaState(state.step + 1, params, rule_params, opt_state), info

    return MetaLearner(init, adapt, update)


def _pack(params: PyTree, rule_params: PyTree) -> PyTree:
    """What the outer optimizer sees: `params` alone where the rule learns nothing.

    So masks and labels written for the model's own tree fit, and a global norm covers both where both are.
    """
    return (params, rule_params) if jax.tree.leaves(rule_params) else params


def _unpack(packed: Any, rule_params: PyTree) -> tuple[PyTree, PyTree]:
    return packed if jax.tree.leaves(rule_params) else (packed, rule_params)


def _with_precision(loss_fn, matmul_precision: str | None):
    """Trace `loss_fn` with products of `matmul_precision`; their derivatives inherit it."""

    def loss(params, batch):
        with jax.default_matmul_precision(matmul_precision):
            return loss_fn(params, batch)

    return loss_fn if matmul_precision is None else loss
