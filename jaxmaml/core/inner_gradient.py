r"""The gradient of the inner loss, and how it is differentiated in turn.

The outer gradient needs, for a cotangent `v` on `g = grad_theta L(theta, eta)`, the products
`(dg/dtheta)^T v` and `(dg/deta)^T v`, where `eta` is everything else that is differentiated (the batch,
closed-over values). Three ways:

* `"reverse"`: let JAX differentiate the backward pass in reverse. Exact; keeps its intermediates.
* `"mixed"`: second derivatives are symmetric, so both products are the derivative of
  `(grad_theta L, grad_eta L)` along `v` in `theta`: one forward-over-reverse pass and nothing kept but
  `theta` and `eta` (Kemaev et al., 2025, https://arxiv.org/abs/2505.00793). Exact. Where memory is no matter, what
  the gradient computed anyway is kept for that pass, and two of its eight products a layer are saved.
* `"first_order"`: take the products to be zero (Finn et al., 2017, section 5.2).

Symmetry holds for true gradients only. A `custom_jvp` or `custom_vjp` rule in the model may define
something else (a straight-through estimator), so `"mixed"` trusts the `custom_jvp` rules of JAX itself,
of optax's losses and of `jaxmaml`, and falls back to `"reverse"`, with a warning, at any other.

A second differentiation (of `update` by a hyperparameter, say) is exact too: the forward pass is plain JAX, and
so is then differentiated in reverse, with reverse mode's memory.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml import parameter_selection
from jaxmaml.jax_internals import Program, instantiate, is_symbolic_zero, tie, traced, untrusted_rules, vary
from jaxmaml.types import LossFn, PyTree

#: `(params, batch) -> (loss, aux, grads)`.
InnerGradient = Callable[[PyTree, Any], tuple[jax.Array, Any, PyTree]]


def inner_gradient(loss_fn: LossFn, derivative: str, linearized: bool = False) -> InnerGradient:
    """Build `(params, batch) -> (loss, aux, grads)`, differentiated in turn as `derivative` says.

    Args:
      loss_fn: `(params, batch) -> (loss, aux)`.
      derivative: `"mixed"`, `"reverse"` or `"first_order"`; see the module's docstring.
      linearized: In `"mixed"`, keep what the derivative shares with the gradient instead of computing it again.
    """

    def reverse(params, batch):
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        return loss, aux, grads

    def first_order(params, batch):
        loss, aux, grads = reverse(params, batch)
        return loss, aux, jax.lax.stop_gradient(grads)

    def mixed(params, batch):
        program, constants = traced(loss_fn, params, batch)
        rule = next(untrusted_rules(program.jaxpr), None)
        if rule is not None:
            warnings.warn(
                f'derivative="mixed" needs symmetric second derivatives, which the custom derivative rule {rule} '
                'inside `loss_fn` does not promise; using derivative="reverse" (also exact, more memory).',
                stacklevel=2,
            )
            return reverse(params, batch)
        # As a list: a rule is given records in place of leaves, which not every pytree of a user can hold.
        return _forward_over_reverse(program, linearized)(params, (jax.tree.leaves(batch), constants))

    return {"mixed": mixed, "reverse": reverse, "first_order": first_order}[derivative]


def _forward_over_reverse(program: Program, linearized: bool):
    """The gradient of `program`, whose own derivative is forward over reverse.

    Of `(params, (leaves of the batch, constants))`, to `(loss, aux, grads)`.
    """

    def loss_and_aux(params, arguments):
        batch, constants = arguments
        return program(constants, params, batch)

    def plain(params, arguments):
        (loss, aux), grads = jax.value_and_grad(loss_and_aux, has_aux=True)(params, arguments)
        return tie((loss, aux, grads), to=(params, arguments))

    gradient = jax.custom_vjp(plain)

    def gradients_at(moving, resting):
        """`params -> (gradients by params and moving, (loss, aux))`."""

        def gradients(params):
            loss_of = lambda params, moving: loss_and_aux(params, parameter_selection.merge(moving, resting))  # noqa: E731
            value, grads = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(params, moving)
            return grads, value

        return gradients

    def forward(params, arguments):
        params = jax.tree.map(lambda p: p.value, params)
        # Only what is being differentiated gets a cotangent: seldom the batch, never its labels.
        moving = jax.tree.map(lambda a: a.value if a.perturbed else None, arguments)
        resting = jax.tree.map(lambda a: None if a.perturbed else a.value, arguments)
        if not linearized:
            return plain(params, parameter_selection.merge(moving, resting)), (params, moving, resting, None)
        (grads, _), derivative, (loss, aux) = jax.linearize(gradients_at(moving, resting), params, has_aux=True)
        return tie((loss, aux, grads), to=(params, moving, resting)), (params, moving, resting, derivative)

    def backward(residuals, cotangents):
        params, moving, resting, derivative = residuals
        loss_bar, aux_bar, grads_bar = cotangents
        gradients = gradients_at(moving, resting)
        along = vary(jax.tree.map(instantiate, grads_bar, is_leaf=is_symbolic_zero), like=residuals[:3])
        if derivative is None:
            first, bars, _ = jax.jvp(gradients, (params,), (along,), has_aux=True)
        else:
            first, bars = None, derivative(along)
        if not is_symbolic_zero(loss_bar):
            first = gradients(params)[0] if first is None else first
            bars = jax.tree.map(lambda bar, g: bar + loss_bar.astype(g.dtype) * g, bars, first)
        if not all(map(is_symbolic_zero, jax.tree.leaves(aux_bar, is_leaf=is_symbolic_zero))):
            # An outer objective uses the auxiliary output: rare, so it pays for a pass of its own.
            _, pull_back = jax.vjp(
                lambda p, m: loss_and_aux(p, parameter_selection.merge(m, resting))[1], params, moving
            )
            aux_bar = vary(jax.tree.map(instantiate, aux_bar, is_leaf=is_symbolic_zero), like=residuals[:3])
            bars = jax.tree.map(jnp.add, bars, pull_back(aux_bar))
        return bars

    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient
