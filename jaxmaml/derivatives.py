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
of optax's losses and of `jaxmaml.nn`, and falls back to `"reverse"`, with a warning, at any other.

A second differentiation (of `update` by a hyperparameter, say) is exact too: the forward pass is plain JAX, and
so is then differentiated in reverse, with reverse mode's memory.
"""

import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.extend import core as jex_core

from jaxmaml import leaves
from jaxmaml.types import LossFn, PyTree

#: `(params, batch) -> (loss, aux, grads)`.
InnerGradient = Callable[[PyTree, Any], tuple[jax.Array, Any, PyTree]]

# Packages whose custom rules are the true derivatives of their functions, and where they are installed.
_TRUSTED = tuple(
    (pathlib.Path(str(file)).parents[1], prefix)
    for file, prefix in ((jax.__file__, "jax."), (optax.__file__, "optax.losses."), (__file__, "jaxmaml.nn."))
)


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
        closed, (_, aux_shape) = jax.make_jaxpr(loss_fn, return_shape=True)(params, batch)
        rule = next(_untrusted_rules(closed.jaxpr), None)
        if rule is not None:
            warnings.warn(
                f'derivative="mixed" needs symmetric second derivatives, which the custom derivative rule {rule} '
                'inside `loss_fn` does not promise; using derivative="reverse" (also exact, more memory).',
                stacklevel=2,
            )
            return reverse(params, batch)
        # A rule may not close over tracers: what loss_fn closes over becomes an explicit argument.
        examples, aux_treedef = jax.tree.leaves(batch), jax.tree.structure(aux_shape)

        def loss_and_aux(params, arguments):
            inputs, consts = arguments[: len(examples)], arguments[len(examples) :]
            loss, *aux = jax.core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(params), *inputs)
            return loss, jax.tree.unflatten(aux_treedef, aux)

        return _forward_over_reverse(loss_and_aux, linearized)(params, [*examples, *closed.consts])

    return {"mixed": mixed, "reverse": reverse, "first_order": first_order}[derivative]


def _forward_over_reverse(loss_and_aux, linearized: bool):
    """`value_and_grad` in the first argument, whose own derivative is forward over reverse."""

    def plain(params, arguments):
        (loss, aux), grads = jax.value_and_grad(loss_and_aux, has_aux=True)(params, arguments)
        return loss, aux, grads

    gradient = jax.custom_vjp(plain)

    def gradients_at(moving, resting):
        """`params -> (gradients by params and moving, (loss, aux))`."""

        def gradients(params):
            loss_of = lambda params, moving: loss_and_aux(params, leaves.merge(moving, resting))  # noqa: E731
            value, grads = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(params, moving)
            return grads, value

        return gradients

    def forward(params, arguments):
        params = jax.tree.map(lambda p: p.value, params)
        # Only what is being differentiated gets a cotangent: seldom the batch, never its labels.
        moving = [a.value if a.perturbed else None for a in arguments]
        resting = [None if a.perturbed else a.value for a in arguments]
        if not linearized:
            return plain(params, leaves.merge(moving, resting)), (params, moving, resting, None)
        (grads, _), derivative, (loss, aux) = jax.linearize(gradients_at(moving, resting), params, has_aux=True)
        return (loss, aux, grads), (params, moving, resting, derivative)

    def backward(residuals, cotangents):
        params, moving, resting, derivative = residuals
        loss_bar, aux_bar, grads_bar = cotangents
        gradients = gradients_at(moving, resting)
        along = jax.tree.map(instantiate, grads_bar, is_leaf=is_symbolic_zero)
        if derivative is None:
            first, bars, _ = jax.jvp(gradients, (params,), (along,), has_aux=True)
        else:
            first, bars = None, derivative(along)
        if not is_symbolic_zero(loss_bar):
            first = gradients(params)[0] if first is None else first
            bars = jax.tree.map(lambda bar, g: bar + loss_bar.astype(g.dtype) * g, bars, first)
        if not all(map(is_symbolic_zero, jax.tree.leaves(aux_bar, is_leaf=is_symbolic_zero))):
            # An outer objective uses the auxiliary output: rare, so it pays for a pass of its own.
            _, pull_back = jax.vjp(lambda p, m: loss_and_aux(p, leaves.merge(m, resting))[1], params, moving)
            aux_bar = jax.tree.map(instantiate, aux_bar, is_leaf=is_symbolic_zero)
            bars = jax.tree.map(jnp.add, bars, pull_back(aux_bar))
        return bars

    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient


def is_symbolic_zero(x: Any) -> bool:
    """Whether a rule is told that this cotangent is zero."""
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def instantiate(x: Any) -> Any:
    """The zeros that a symbolic zero stands for."""
    if not is_symbolic_zero(x):
        return x
    return jnp.zeros(x.shape, x.dtype)


def _untrusted_rules(jaxpr) -> Iterator[str]:
    """Names and places of the custom derivative rules in `jaxpr` that are not known to be true ones."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")) and not _is_trusted(eqn):
            yield _debug_info(eqn).func_src_info
        for inner in jex_core.jaxprs_in_params(eqn.params):
            yield from _untrusted_rules(inner)


def _debug_info(eqn):
    function = eqn.params["call_jaxpr"]
    return getattr(function, "jaxpr", function).debug_info


def _is_trusted(eqn) -> bool:
    """Whether a rule is one that a trusted package defines for a function of its own.

    Both halves matter: `jax.custom_jvp(jnp.floor)` puts a user's rule on a function of JAX. A `custom_vjp` is never
    trusted: it need not have a forward mode.
    """
    rule = getattr(eqn.params.get("jvp_jaxpr_fun"), "debug_info", None)
    if eqn.primitive.name != "custom_jvp_call" or rule is None or _trusted_module(rule.func_filename) is None:
        return False
    function = _debug_info(eqn)
    module = _trusted_module(function.func_filename)
    return isinstance(getattr(module, function.func_src_info.split(" at ")[0], None), jax.custom_jvp)


def _trusted_module(filename: str | None):
    """The loaded module at `filename`, if it is in a package whose rules are true derivatives."""
    for root, package in _TRUSTED:
        path = pathlib.Path(filename or "")
        if root in path.parents:
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if name.startswith(package):
                return sys.modules.get(name)
    return None
