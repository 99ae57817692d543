"""The learner: the meta-loss over a batch of tasks, and the outer step that minimises it."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks, keys, objectives, parameter_selection, starts, supports
from jaxmaml.core import meta_gradients
from jaxmaml.core.inner_loop import make_inner_loop, masks, of_step
from jaxmaml.core.meta_loss import MetaLoss
from jaxmaml.execution.executor import Executor
from jaxmaml.jax_internals import vary
from jaxmaml.options import Axes, Evolution, Implicit, Options, complete
from jaxmaml.rules import as_inner_rule, check_differentiable_at_zero, check_usable
from jaxmaml.types import InnerRule, LossFn, MetaInfo, MetaLearner, MetaState, PyTree, Spec, Task


def make_learner(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    num_inner_steps: int,
    axes: Axes,
    algorithm: str,
) -> MetaLearner:
    """Assemble a learner from a choice on each axis; every factory ends here, and gives its name as `algorithm`."""
    checks.function("loss_fn", loss_fn)
    checks.inner_optimizer(inner_optimizer)
    checks.optimizer("outer_optimizer", outer_optimizer)
    training_steps = checks.positive_int("num_inner_steps", num_inner_steps)
    options = complete(axes)
    _check_combination(options)
    spec = Spec(
        algorithm=algorithm,
        axes=options,
        num_inner_steps=training_steps,
        needs_key=_draws(options),
        replace=lambda **other: make_learner(
            loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, cast(Axes, {**axes, **other}), algorithm
        ),
    )
    executor = Executor(options)
    options = _with_start(options, executor)
    rule = as_inner_rule(inner_optimizer)
    is_differentiated = options.derivative in ("mixed", "reverse") and options.objective not in _NOT_THROUGH_THE_RULE
    if is_differentiated:
        check_differentiable_at_zero(rule)
    exact_loss = executor.loss(checks.with_checked_output(loss_fn))

    def inner_loop_of(options: Options):
        return executor.inner_loop(make_inner_loop(exact_loss, rule, options, executor.step_loop))

    inner_loop = inner_loop_of(options)
    outer = optax.with_extra_args_support(outer_optimizer)
    meta_loss = MetaLoss(exact_loss, executor.query_loss(exact_loss), inner_loop_of, training_steps, options)
    mean_gradient = executor.mean_over_tasks(meta_loss.gradient())

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
        check_usable("outer_optimizer", outer_optimizer, packed, _GIVEN_TO_OUTER, differentiated=False)
        return MetaState(
            step=jnp.zeros((), jnp.int32), params=params, rule_params=rule_params, opt_state=outer.init(packed)
        )

    def adapt(state: MetaState, support: Any, *, num_inner_steps: int | None = None, key=None, observe=None):
        checks.state(state)
        checks.batch("support", support)
        steps = training_steps if num_inner_steps is None else num_inner_steps
        checks.positive_int("num_inner_steps", steps)
        watch, watch_draws = keys.takes_all("observe", observe or _nothing, ("fast_params", "step", "key"), optional=2)
        if key is None and (spec.needs_key or watch_draws):
            what = "this learner draws random numbers" if spec.needs_key else "`observe` takes one"
            raise TypeError(f"`key` is needed, because {what}: pass a PRNG key such as jax.random.key(0).")
        if key is not None:
            checks.prng_key(key)
            key = keys.threefry(key)
        own = keys.of_task(key)

        def watched(params, index):
            return watch(of_step(params, index - 1, options), index, keys.at_step(own.query, index))

        meta = (state.params, state.rule_params)
        fast_params, trace = inner_loop(meta, support, steps, key, None if observe is None else watched)
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
        draws = spec.needs_key or isinstance(options.derivative, Evolution)
        # Split before tasks are put into chunks or on devices, which therefore do not change what is drawn.
        task_keys = jax.random.split(keys.from_seed(options.seed, state.step), num_tasks) if draws else None
        # Within a `jax.shard_map` of the caller's, each device takes a step of its own.
        meta = vary((state.params, state.rule_params), like=tasks)
        out, grads = mean_gradient(meta, state.step, (tasks, task_keys))
        packed, grads = _pack(*meta), _pack(*grads)

        def mean_outcome(packed):
            """The mean over the same tasks, with the same draws, at other meta-parameters."""
            other = _unpack(packed, state.rule_params)
            values, out = executor.map_tasks(meta_loss.of_task(), other, (tasks, task_keys), state.step)
            return jnp.mean(values), out

        extra: dict[str, Any] = {"value": jnp.mean(out.query_loss), "value_fn": lambda p: mean_outcome(p)[0]}
        if isinstance(out.aux, Mapping) and "kl" in out.aux:
            extra["kl_fn"] = lambda p: jnp.mean(mean_outcome(p)[1].aux["kl"])
        updates, opt_state = outer.update(grads, state.opt_state, packed, **extra)
        params, rule_params = _unpack(optax.apply_updates(packed, updates), state.rule_params)
        rule_params = rule.project(rule_params)
        if isinstance(options.derivative, Implicit):
            meta_gradients.warn_where_unsolved(out.diagnostics, options.derivative)
        # In float32 at least: squares of half precision would overflow.
        norm = optax.tree.norm(jax.tree.map(meta_gradients.wide, grads))
        info = MetaInfo(out.query_loss, out.support_loss, norm, out.aux, out.diagnostics)
        return MetaState(state.step + 1, params, rule_params, opt_state), info

    return MetaLearner(init, adapt, update, spec)


# These objectives do not differentiate the inner optimizer.
_NOT_THROUGH_THE_RULE = (objectives.displacement, objectives.before_adaptation)
_OF_STARTS = ("params", "support", "key")
# The arguments of an inner rule beside gradient, state and parameters.
_GIVEN_TO_RULES = ("value", "grad", "value_fn")
# Those of an outer optimizer; `kl_fn` only where the loss has a divergence.
_GIVEN_TO_OUTER = ("value", "value_fn", "kl_fn")


def _nothing(fast_params):
    return ()


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


def _check_combination(options: Options) -> None:
    """Raise where choices on two axes do not go together."""
    objective = options.objective
    for builder in (objectives.multi_step, objectives.online, objectives.chaser):
        if objective is builder:
            name = f"jaxmaml.objectives.{builder.__name__}"
            raise TypeError(f"`objective` must be what {name}(...) returns, got that function itself.")
    if objective is objectives.displacement:
        for name in ("adapted", "per_step"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"`{name}` does not go with the objective `displacement` (Reptile): it uses the change of the "
                    "adapted parameters, so that leaves which no inner step updates would never be learned."
                )
    for name in ("supports", "queries"):
        chosen = getattr(options, name)
        if chosen is not None and isinstance(objective, objectives.Chaser):
            raise ValueError(
                f"`{name}` does not go with the objective `chaser`: its leader learns from support and query together, "
                "which have to be two batches of examples."
            )
        if isinstance(getattr(chosen, "at", None), supports.Collected) and options.remat == "recursive":
            raise ValueError(
                f'`{name}` that collect rollouts do not go with remat="recursive", whose backward pass would collect '
                'them again; remat="steps" keeps them.'
            )


def _draws(options: Options) -> bool:
    """Whether adaptation to a task, or its evaluation, draws random numbers."""
    chosen = [supports.complete(name, getattr(options, name))[1] for name in ("supports", "queries")]
    return any(chosen) or (options.start is not None and keys.takes_all("start", options.start, _OF_STARTS)[1])


def _with_start(options: Options, executor: Executor) -> Options:
    """`options` with a start of all arguments, and with exact derivatives."""
    if options.start is None:
        return options
    start = executor.exact(keys.takes_all("start", options.start, _OF_STARTS)[0])
    return options._replace(start=starts.Resizing(start) if isinstance(options.start, starts.Resizing) else start)


def _pack(params: PyTree, rule_params: PyTree) -> PyTree:
    """The tree that the outer optimizer updates: `params` alone if the inner rule has no parameters.

    Masks and labels written for the model's own tree therefore fit, and a global norm covers both trees.
    """
    return (params, rule_params) if jax.tree.leaves(rule_params) else params


def _unpack(packed: Any, rule_params: PyTree) -> tuple[PyTree, PyTree]:
    return packed if jax.tree.leaves(rule_params) else (packed, rule_params)
