"""The meta-gradient, summed over tasks: by backpropagation, implicit differentiation or evolution strategies."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmaml import keys, parameter_selection
from jaxmaml.core.inner_loop import masks, start_of
from jaxmaml.jax_internals import tie
from jaxmaml.options import Evolution, Implicit, Options
from jaxmaml.types import Outcome, PyTree

#: `(meta, step, (tasks, keys), weights) -> (Outcome, grads)`, the gradient of the weighted sum over tasks.
MetaGradient = Callable[..., tuple[Outcome, PyTree]]


class ImplicitInfo(NamedTuple):
    """The accuracy of a task's implicit gradient: `info.diagnostics` of a learner with `Implicit`.

    Attributes:
      residual: The relative norm of the linear system's residual, `[num_tasks]`.
      stationarity: Norm of the inner objective's gradient where the inner loop ended, `[num_tasks]`; at the
        minimum that the formula assumes it is 0.
    """

    residual: jax.Array
    stationarity: jax.Array


def backpropagation(value: Callable) -> MetaGradient:
    """Differentiate the sum of `value(meta, task, key, step) -> (scalar, Outcome)`."""

    def gradient(meta, step, tasks_and_keys, weights):
        def total(sums):
            def of_task(task, key):
                # The sum over tasks of a float16 gradient could overflow: each task gets a copy, and sums are float32.
                own = jax.tree.map(
                    lambda s, m: s if s.dtype == m.dtype else tie(s, to=task).astype(m.dtype), sums, meta
                )
                return value(own, task, key, step)

            values, out = _over(tasks_and_keys, of_task)
            values = wide(values)
            return jnp.sum(weights.astype(values.dtype) * values), out

        sums = jax.tree.map(lambda m: wide(m) if m.dtype == jnp.float16 else m, meta)
        grads, out = jax.grad(total, has_aux=True)(sums)
        return out, grads

    return gradient


def evolution(value: Callable, settings: Evolution) -> MetaGradient:
    """Estimate the gradient of `value` from its values at antithetic Gaussian perturbations of `meta`."""

    def of_task(meta, step, task, key):
        noise_key, key = jax.random.split(key)

        def moved(noise, by):
            return value(jax.tree.map(lambda m, n: m + by * settings.std * n, meta, noise), task, key, step)[0]

        def pair(noise_key):
            noise = optax.tree.random_like(noise_key, meta)
            difference = (moved(noise, 1.0) - moved(noise, -1.0)) / (2 * settings.std)
            return jax.tree.map(lambda n: difference.astype(n.dtype) * n, noise)

        grads = jax.vmap(pair)(jax.random.split(noise_key, settings.num_pairs))
        return value(meta, task, key, step)[1], jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)

    return _each_task(of_task)


def implicit(
    loss_fn: Callable, inner_loop: Callable, query_loss: Callable, planned: Callable, options: Options
) -> MetaGradient:
    r"""Differentiate the minimum of the proximal inner problem by the implicit function theorem.

    At a minimum `phi` of `L(phi, w) + lambda/2 ||phi - s||^2`, where start `s` and frozen leaves `w` depend on the
    meta-parameters, `phi = s - grad_phi L(phi, w) / lambda`. With `v = grad L_query(phi)` and `(I + H / lambda) u = v`,
    the meta-gradient is the VJP of this right-hand side at a constant `phi` with cotangent `u`, plus the direct
    gradient of the query loss with respect to `w`. For MAML's own start `s = theta` it is `u`.
    """
    settings = options.derivative
    assert isinstance(settings, Implicit)

    def of_task(meta, step, task, key):
        task = planned(task, key)
        params, trace = inner_loop(meta, task.support, key=key)
        moving, _ = masks(params, options)
        solution, _ = parameter_selection.split(params, moving)

        def parts(meta):
            start = start_of(meta[0], task.support, keys.of_task(key).start, options)
            return parameter_selection.split(start, moving)

        def support_gradient(fast_params, frozen):
            loss = lambda fast: loss_fn(parameter_selection.merge(fast, frozen), task.support)[0]  # noqa: E731
            return jax.grad(loss)(fast_params)

        def query(fast_params, frozen):
            return query_loss(parameter_selection.merge(fast_params, frozen), task.query)

        start, frozen = parts(meta)
        (loss, aux), right = jax.value_and_grad(query, has_aux=True)(solution, frozen)
        # Conjugate gradients need one dtype, and half precision would not converge.
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(right))
        right = jax.tree.map(lambda r: r.astype(dtype), right)

        def system(vector):
            narrow = jax.tree.map(lambda v, s: v.astype(s.dtype), vector, solution)
            _, product = jax.jvp(lambda fast: support_gradient(fast, frozen), (solution,), (narrow,))
            scale = settings.strength + settings.shift
            return jax.tree.map(lambda v, h: (1 + settings.damping) * v + h.astype(dtype) / scale, vector, product)

        solved, _ = jax.scipy.sparse.linalg.cg(system, right, tol=settings.tolerance, maxiter=settings.max_solver_steps)

        def pulled_back(meta):
            start, frozen = parts(meta)
            inner = support_gradient(solution, frozen)
            fixed_point = jax.tree.map(lambda s, g: (s - g / settings.strength).astype(dtype), start, inner)
            return query(solution, frozen)[0] + optax.tree.vdot(solved, fixed_point)

        inner = support_gradient(solution, frozen)
        stationarity = jax.tree.map(lambda g, f, s: g + settings.strength * (f - s), inner, solution, start)
        rest = jax.tree.map(jnp.subtract, system(solved), right)
        residual = optax.tree.norm(rest) / jnp.maximum(optax.tree.norm(right), jnp.finfo(loss.dtype).tiny)
        info = ImplicitInfo(residual, optax.tree.norm(stationarity))
        return Outcome(loss, trace.support_loss, aux, info), jax.grad(pulled_back)(meta)

    return _each_task(of_task)


def warn_where_unsolved(info: ImplicitInfo, settings: Implicit) -> None:
    """Warn where conjugate gradients did not converge; under `jit` when it runs."""
    limit = 10 * settings.tolerance

    def warn(residual):
        if not np.all(residual <= limit):
            # Without the number itself, so that Python shows it once and not at every step.
            warnings.warn(
                f"Conjugate gradients left a residual above {limit:g} of the right-hand side (`info.diagnostics`), so "
                "the implicit meta-gradient is inexact. Take more `max_solver_steps` or a larger `strength`; where the "
                "Hessian has an eigenvalue below -strength there is no minimum to differentiate.",
                stacklevel=2,
            )

    worst = jnp.max(info.residual)
    jax.lax.cond(worst <= limit, lambda _: None, lambda r: jax.debug.callback(warn, r), worst)


def after(first_order_steps: int, exact: MetaGradient, first_order: MetaGradient) -> MetaGradient:
    """First-order gradients in the first `first_order_steps` outer steps, and exact gradients afterwards."""

    def gradient(meta, step, *tasks):
        return jax.lax.cond(step < first_order_steps, first_order, exact, meta, step, *tasks)

    return gradient


def _each_task(of_task: Callable) -> MetaGradient:
    def gradient(meta, step, tasks_and_keys, weights):
        out, grads = _over(tasks_and_keys, lambda task, key: of_task(meta, step, task, key))
        grads = jax.tree.map(wide, grads)
        return out, jax.tree.map(lambda g: jnp.einsum("t,t...->...", weights.astype(g.dtype), g), grads)

    return gradient


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32 or a wider dtype, in which sums over tasks are taken."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _over(tasks_and_keys: tuple[PyTree, PyTree], function: Callable) -> PyTree:
    """`function` of each task, by `vmap`; a single task is not batched, because XLA compiles faster code without it."""
    if jax.tree.leaves(tasks_and_keys)[0].shape[0] > 1:
        return jax.vmap(function)(*tasks_and_keys)
    out = function(*jax.tree.map(lambda leaf: leaf[0], tasks_and_keys))
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), out)
