r"""The gradient of the inner loss, and the VJP of that gradient.

The meta-gradient needs, for a cotangent `v` of `g = grad_theta L(theta, eta)`, the VJPs `(dg/dtheta)^T v` and
`(dg/deta)^T v`, where `eta` is everything else that is differentiated (the batch, closed-over values). They are
computed in one of three ways:

* `"reverse"`: JAX differentiates the backward pass in reverse mode. Exact; its intermediates are kept in memory.
* `"mixed"`: second derivatives are symmetric, so both VJPs are the directional derivative of
  `(grad_theta L, grad_eta L)` with respect to `theta` along `v`. One forward-over-reverse pass computes it, and only
  `theta` and `eta` are kept in memory (Kemaev et al., 2025, https://arxiv.org/abs/2505.00793). Exact. With
  `linearized`, the intermediates of the gradient are kept as well: six matmuls for each layer instead of eight.
* `"first_order"`: both VJPs are taken to be zero (Finn et al., 2017, section 5.2).

Symmetry holds for true gradients only. A `custom_jvp` or `custom_vjp` rule in the model may define something else (a
straight-through estimator). `"mixed"` therefore trusts the `custom_jvp` rules of JAX itself, of optax's losses and of
`jaxmaml`; where it finds any other rule it uses `"reverse"` instead, with a warning.

Differentiating once more, for instance `update` with respect to a hyperparameter, is exact. It uses plain reverse mode,
and its memory.
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
    """Build `(params, batch) -> (loss, aux, grads)`, whose own derivative is computed as `derivative` says.

    Args:
      loss_fn: `(params, batch) -> (loss, aux)`.
      derivative: `"mixed"`, `"reverse"` or `"first_order"`; see the module's docstring.
      linearized: In `"mixed"`, keep the intermediates that the derivative shares with the gradient; by default they are
        recomputed.
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
        # As a list: a custom rule gets records in place of leaves, which not every pytree type accepts.
        return _forward_over_reverse(program, linearized)(params, (jax.tree.leaves(batch), constants))

    return {"mixed": mixed, "reverse": reverse, "first_order": first_order}[derivative]


def _forward_over_reverse(program: Program, linearized: bool):
    """`(params, (leaves of the batch, constants)) -> (loss, aux, grads)`, with a forward-over-reverse derivative."""

    def loss_and_aux(params, arguments):
        batch, constants = arguments
        return program(constants, params, batch)

    def plain(params, arguments):
        (loss, aux), grads = jax.value_and_grad(loss_and_aux, has_aux=True)(params, arguments)
        return tie((loss, aux, grads), to=(params, arguments))

    gradient = jax.custom_vjp(plain)

    def gradients_at(perturbed, unperturbed):
        """`params -> (gradients with respect to params and perturbed, (loss, aux))`."""

        def gradients(params):
            def loss_of(params, perturbed):
                return loss_and_aux(params, parameter_selection.merge(perturbed, unperturbed))

            value, grads = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(params, perturbed)
            return grads, value

        return gradients

    def forward(params, arguments):
        params = jax.tree.map(lambda p: p.value, params)
        # Only what is being differentiated gets a cotangent: rarely the batch, and never integer labels.
        perturbed = jax.tree.map(lambda a: a.value if a.perturbed else None, arguments)
        unperturbed = jax.tree.map(lambda a: None if a.perturbed else a.value, arguments)
        if not linearized:
            residuals = (params, perturbed, unperturbed, None)
            return plain(params, parameter_selection.merge(perturbed, unperturbed)), residuals
        (grads, _), derivative, (loss, aux) = jax.linearize(gradients_at(perturbed, unperturbed), params, has_aux=True)
        at = (params, perturbed, unperturbed)
        return tie((loss, aux, grads), to=at), (*at, derivative)

    def backward(residuals, cotangents):
        params, perturbed, unperturbed, derivative = residuals
        loss_bar, aux_bar, grads_bar = cotangents
        gradients = gradients_at(perturbed, unperturbed)
        along = vary(jax.tree.map(instantiate, grads_bar, is_leaf=is_symbolic_zero), like=residuals[:3])
        if derivative is None:
            first, bars, _ = jax.jvp(gradients, (params,), (along,), has_aux=True)
        else:
            first, bars = None, derivative(along)
        if not is_symbolic_zero(loss_bar):
            first = gradients(params)[0] if first is None else first
            bars = jax.tree.map(lambda bar, g: bar + loss_bar.astype(g.dtype) * g, bars, first)
        if not all(map(is_symbolic_zero, jax.tree.leaves(aux_bar, is_leaf=is_symbolic_zero))):
            # An outer objective depends on the auxiliary output. This is rare, so it takes a backward pass of its own.
            _, pull_back = jax.vjp(
                lambda p, m: loss_and_aux(p, parameter_selection.merge(m, unperturbed))[1], params, perturbed
            )
            aux_bar = vary(jax.tree.map(instantiate, aux_bar, is_leaf=is_symbolic_zero), like=residuals[:3])
            bars = jax.tree.map(jnp.add, bars, pull_back(aux_bar))
        return bars

    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient
