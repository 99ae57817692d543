"""The learner: the meta-loss over a batch of tasks, and the outer step that minimises it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks, objectives, parameter_selection
from jaxmaml.core import meta_gradients
from jaxmaml.core.inner_loop import make_inner_loop, masks, of_step
from jaxmaml.execution.executor import Executor
from jaxmaml.jax_internals import vary
from jaxmaml.options import Axes, Evolution, Implicit, Options, complete
from jaxmaml.rules import as_inner_rule, check_differentiable_at_zero, check_usable
from jaxmaml.types import InnerRule, LossFn, MetaInfo, MetaLearner, MetaState, PyTree, Task


def make_learner(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    num_inner_steps: int,
    axes: Axes,
) -> MetaLearner:
    """Assemble a learner from a choice on each axis; every factory ends here."""
    checks.function("loss_fn", loss_fn)
    checks.inner_optimizer(inner_optimizer)
    checks.optimizer("outer_optimizer", outer_optimizer)
    training_steps = checks.positive_int("num_inner_steps", num_inner_steps)
    options = complete(axes)
    executor = Executor(options)
    for builder in (objectives.multi_step, objectives.chaser):
        if options.objective is builder:
            name = f"jaxmaml.objectives.{builder.__name__}"
            raise TypeError(f"`objective` must be what {name}(...) returns, got that function itself.")
    if options.objective is objectives.displacement:
        for name in ("adapted", "per_step"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"`{name}` does not go with the objective `displacement` (Reptile): it uses the change of the "
                    "adapted parameters, so that leaves which no inner step updates would never be learned."
                )
    if options.start is not None:
        options = options._replace(start=executor.exact(options.start))
    rule = as_inner_rule(inner_optimizer)
    is_differentiated = options.derivative in ("mixed", "reverse") and options.objective not in _NOT_THROUGH_THE_RULE
    if is_differentiated:
        check_differentiable_at_zero(rule)
    loss_fn = executor.loss(checks.with_checked_output(loss_fn))

    def inner_loop_of(options: Options):
        return executor.inner_loop(make_inner_loop(loss_fn, rule, options, executor.step_loop))

    inner_loop = inner_loop_of(options)
    outer = optax.with_extra_args_support(outer_optimizer)
    meta_gradient = _meta_gradient(loss_fn, executor.query_loss(loss_fn), inner_loop_of, training_steps, options)
    mean_gradient = executor.mean_over_tasks(meta_gradient)

    def init(params: PyTree) -> MetaState:
        params = checks.params(params)
        moving, per_step = masks(params, options)
        adapted, _ = parameter_selection.split(params, moving)
        if not isinstance(inner_optimizer, InnerRule):
            check_usable("inner_optimizer", inner_optimizer, adapted, _GIVEN_TO_RULES, is_differentiated)
        rule_params = checks.floating("rule_params", rule.init_params(adapted))
        if jax.tree.leaves(rule_params):
            _check_learns(options)
        params = parameter_selection.with_steps(params, per_step, training_steps)
        packed = _pack(params, rule_params)
        check_usable("outer_optimizer", outer_optimizer, packed, ("value",), differentiated=False)
        return MetaState(
            step=jnp.zeros((), jnp.int32), params=params, rule_params=rule_params, opt_state=outer.init(packed)
        )

    def adapt(state: MetaState, support: Any, *, num_inner_steps: int | None = None, observe=None):
        checks.state(state)
        checks.batch("support", support)
        steps = training_steps if num_inner_steps is None else num_inner_steps
        checks.positive_int("num_inner_steps", steps)
        if observe is not None:
            checks.function("observe", observe)
        watch = None if observe is None else lambda params, index: observe(of_step(params, index - 1, options))
        meta = (state.params, state.rule_params)
        fast_params, trace = inner_loop(meta, support, steps, _key(state.step, options), watch)
        return of_step(fast_params, steps - 1, options), trace

    def update(state: MetaState, tasks: Task) -> tuple[MetaState, MetaInfo]:
        checks.state(state)
        num_tasks = checks.tasks(tasks)
        checks.placement(tasks, options.mesh)
        moving, _ = masks(state.params, options)
        fresh_rule = jax.eval_shape(rule.init_params, parameter_selection.split(state.params, moving)[0])
        checks.same_structure("state.rule_params", state.rule_params, fresh_rule)
        fresh = jax.eval_shape(outer.init, _pack(state.params, state.rule_params))
        checks.same_structure("state.opt_state", state.opt_state, fresh)
        key = _key(state.step, options)
        keys = None if key is None else jax.random.split(key, num_tasks)
        # Within a `jax.shard_map` of the caller's, each device takes a step of its own.
        meta = vary((state.params, state.rule_params), like=tasks)
        out, grads = mean_gradient(meta, state.step, (tasks, keys))
        packed, grads = _pack(*meta), _pack(*grads)
        updates, opt_state = outer.update(grads, state.opt_state, packed, value=jnp.mean(out.query_loss))
        params, rule_params = _unpack(optax.apply_updates(packed, updates), state.rule_params)
        if isinstance(options.derivative, Implicit):
            meta_gradients.warn_where_unsolved(out.diagnostics, options.derivative)
        # In float32 at least: squares of half precision would overflow.
        norm = optax.tree.norm(jax.tree.map(meta_gradients.wide, grads))
        info = MetaInfo(out.query_loss, out.support_loss, norm, out.aux, out.diagnostics)
        return MetaState(state.step + 1, params, rule_params, opt_state), info

    return MetaLearner(init, adapt, update)


# These objectives do not differentiate the inner optimizer.
_NOT_THROUGH_THE_RULE = (objectives.displacement, objectives.before_adaptation)
# The arguments of an inner rule beside gradient, state and parameters.
_GIVEN_TO_RULES = ("value", "grad", "value_fn")


def _check_learns(options: Options) -> None:
    """Raise if the parameters of an inner rule would never be learned."""
    reason = None
    if isinstance(options.derivative, Implicit):
        reason = "implicit derivatives do not: the minimum does not depend on the way to it"
    elif options.objective is objectives.displacement:
        reason = "the objective `displacement` (Reptile) does not: it does not differentiate the inner loop"
    elif options.objective is objectives.before_adaptation:
        reason = "the objective `before_adaptation` (joint training) does not: it takes no inner step"
    if reason:
        raise ValueError(f"`inner_optimizer` has parameters that the outer loop has to learn, and {reason}.")


def _meta_gradient(
    loss_fn, chunked_loss, inner_loop_of, num_inner_steps: int, options: Options
) -> meta_gradients.MetaGradient:
    """The meta-gradient that `options` ask for.

    Args:
      loss_fn: The loss on the support.
      chunked_loss: The same in chunks, for the query.
      inner_loop_of: `options -> inner loop`.
      num_inner_steps: The number of inner steps in training.
      options: The learner's.
    """

    def query_loss(params, query, num_steps: Any = num_inner_steps):
        return chunked_loss(of_step(params, num_steps - 1, options), query)

    def trained(options: Options):
        return functools.partial(inner_loop_of(options), num_inner_steps=num_inner_steps)

    def value(options: Options):
        return (options.objective or objectives.last_step)(trained(options), query_loss)

    if isinstance(options.derivative, Implicit):
        return meta_gradients.implicit(loss_fn, trained(options), query_loss, options)
    if isinstance(options.derivative, Evolution):
        return meta_gradients.evolution(value(options), options.derivative)
    gradient = meta_gradients.backpropagation(value(options))
    if not options.first_order_steps:
        return gradient
    first_order = meta_gradients.backpropagation(value(options._replace(derivative="first_order")))
    return meta_gradients.after(options.first_order_steps, gradient, first_order)


def _key(step: jax.Array, options: Options):
    """The PRNG key of an outer step; `None` if nothing is random."""
    if options.inner_batch_size is None and not isinstance(options.derivative, Evolution):
        return None
    # Always threefry: with other implementations the draws may depend on the size of a chunk.
    return jax.random.fold_in(jax.random.key(options.seed, impl="threefry2x32"), step)


def _pack(params: PyTree, rule_params: PyTree) -> PyTree:
    """The tree that the outer optimizer updates: `params` alone if the inner rule has no parameters.

    Masks and labels written for the model's own tree therefore fit, and a global norm covers both trees.
    """
    return (params, rule_params) if jax.tree.leaves(rule_params) else params


def _unpack(packed: Any, rule_params: PyTree) -> tuple[PyTree, PyTree]:
    return packed if jax.tree.leaves(rule_params) else (packed, rule_params)
