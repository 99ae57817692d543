"""The inner loop: adapting to one task by gradient descent on its support loss."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from jaxmaml import checks, keys, parameter_selection, starts, supports
from jaxmaml.core.inner_gradient import inner_gradient
from jaxmaml.jax_internals import vary
from jaxmaml.options import Implicit, Options
from jaxmaml.types import INNER_GRADIENT, AdaptTrace, InnerRule, PyTree, StepLoop, Supports

#: `((params, rule_params), support, num_inner_steps, key, observe, then) -> (fast_params, AdaptTrace)`, and the
#: parameters after further steps if `then` is given.
InnerLoop = Callable[..., Any]


def make_inner_loop(loss_fn: Callable[..., Any], rule: InnerRule, options: Options, step_loop: StepLoop) -> InnerLoop:
    r"""Build the inner loop `theta_{k+1} = theta_k + rule(grad L_support(theta_k))`.

    `step_loop.run` iterates the step as `jax.lax.scan` does. The axis `supports` chooses the batch of each step. Only
    the adapted leaves are carried and differentiated.
    `observe(params, k)` is recorded after `k` steps, from 0. Leaves with a value for each step are passed whole, and
    `of_step` selects that of one step. With `then = (data, n)`, `n` further steps are taken, each on all of `data`, and
    their parameters are returned as a third result, which is not differentiated.
    """
    derivative = options.derivative if isinstance(options.derivative, str) else "first_order"
    strength = options.derivative.strength if isinstance(options.derivative, Implicit) else None
    batches, _ = supports.complete("supports", options.supports)

    def support_loss(fast_params, seen):
        """The loss that a step minimises, and `(loss, aux)` to report; `seen` is all else that it depends on."""
        frozen, first, index, batch = seen
        loss, aux = loss_fn(of_step(parameter_selection.merge(fast_params, frozen), index, options), batch)
        minimised = loss if strength is None else loss + _proximal(fast_params, first, strength)
        return minimised, (loss, aux)

    def inner_loop(
        meta: tuple[PyTree, PyTree],
        support: Any,
        num_inner_steps: int,
        key: chex.PRNGKey | None = None,
        observe: Callable[[PyTree, Any], Any] | None = None,
        then: tuple[Any, int] | None = None,
    ):
        params, rule_params = vary(meta, like=support)
        own = keys.of_task(key)
        params = start_of(params, support, own.start, options)
        first, frozen = parameter_selection.split(params, masks(params, options)[0])

        def watch(fast_params: PyTree, index: Any) -> Any:
            seen = observe(parameter_selection.merge(fast_params, frozen), index) if observe else ()
            return checks.arrays("`observe(fast_params)`", seen)

        def steps(carry, constants, chosen: Supports, of_task: supports.Planned, begin: int, number: int):
            first, frozen, rule_params = constants
            gradient = inner_gradient(support_loss, derivative, step_loop.keeps_all(number))

            def step(carry, taken):
                (fast_params, rule_state), index = carry, begin + taken
                whole_params = of_step(parameter_selection.merge(fast_params, frozen), index, options)
                batch = supports.batch_at(chosen, of_task, taken, whole_params)
                seen = (frozen, None if strength is None else first, index, batch)
                value, (loss, aux), grads = gradient(fast_params, seen)
                grads = checkpoint_name(grads, INNER_GRADIENT)
                updates, rule_state = rule.update(
                    grads,
                    rule_state,
                    fast_params,
                    rule_params,
                    index,
                    value=value,
                    grad=grads,
                    value_fn=lambda p: support_loss(p, seen)[0],
                )
                return (optax.apply_updates(fast_params, updates), rule_state), (loss, aux, watch(fast_params, index))

            return step_loop.run(step, carry, number)

        start, constants = (first, vary(rule.init(rule_params, first), like=support)), (first, frozen, rule_params)
        # The body of a loop of no steps is traced too, and asks for the batch of step 0.
        of_task = supports.planned(batches, support, max(num_inner_steps, 1), own.support_plan, own.support)
        carry, (losses, aux, seen) = steps(start, constants, batches, of_task, 0, num_inner_steps)
        last = watch(carry[0], num_inner_steps)
        seen = jax.tree.map(lambda s, last: jnp.concatenate([s, last[None]]), seen, last)
        adapted = parameter_selection.merge(carry[0], frozen), AdaptTrace(support_loss=losses, aux=aux, observed=seen)
        if then is None:
            return adapted
        constants = jax.lax.stop_gradient((carry, constants))
        everything, _ = supports.complete("supports", None)
        both = supports.Planned((), then[0], None)
        further, _ = steps(*constants, everything, both, num_inner_steps, then[1])
        return *adapted, parameter_selection.merge(further[0], frozen)

    return inner_loop


def masks(params: PyTree, options: Options) -> tuple[PyTree, PyTree]:
    """The leaves that inner steps update, and the leaves that have a value for each inner step, as masks."""
    moving = parameter_selection.select(params, options.adapted, "adapted")
    if options.per_step is None:
        return moving, jax.tree.map(lambda _: False, params)
    per_step = parameter_selection.select(params, options.per_step, "per_step")
    moving = jax.tree.map(lambda m, p: m and not p, moving, per_step)
    if not any(jax.tree.leaves(moving)):
        raise ValueError(
            "`per_step` leaves nothing to adapt: inner steps do not update leaves with a value for each step."
        )
    return moving, per_step


def start_of(params: PyTree, support: Any, key: chex.PRNGKey | None, options: Options) -> PyTree:
    """The parameters that adaptation to a task starts from: `params`, or `start(params, support, key)`.

    Raises:
      ValueError, TypeError: If `start` gives another structure, shape or dtype.
    """
    if options.start is None:
        return params
    start = options.start(params, support, key)
    checks.like("start(params, support, key)", start, params, sizes=not isinstance(options.start, starts.Resizing))
    return start


def of_step(params: PyTree, step: Any, options: Options) -> PyTree:
    """The parameters of inner step `step`: leaves with a value for each step are replaced by that step's."""
    if options.per_step is None:
        return params
    return parameter_selection.at_step(params, masks(params, options)[1], step)


def _proximal(fast_params: PyTree, first: PyTree, strength: float) -> jax.Array:
    away = jax.tree.map(lambda f, s: jnp.sum(jnp.square(f - s)), fast_params, first)
    return 0.5 * strength * jnp.asarray(sum(jax.tree.leaves(away)))
