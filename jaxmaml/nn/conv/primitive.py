r"""Convolution and its VJPs as one JAX primitive, which is closed under differentiation and `vmap`.

All of them come from one trilinear form, a scalar that is linear in each of its three arrays,

    sum_{n, p, k, c, o} image[n, p * stride + k * dilation, c] * kernel[k, c, o] * output[n, p, o],

by leaving one array out: `output` for the convolution, and `image` or `kernel` for its VJP with respect to that array.
Each is bilinear in its two operands, so that its derivatives are again among the three. An axis that `vmap` adds to
two of the three arrays is merged into an axis that these two share, such as the examples. An axis that all three have
is an axis of groups, and so is `feature_group_count`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml.execution.rewriting import deferred
from jaxmaml.jax_internals import Zero, is_plain, is_undefined_primal
from jaxmaml.nn.conv import lowering
from jaxmaml.nn.conv.spec import OPERANDS

# The axis, after that of groups, that two arrays share: examples, input channels or output channels.
_SHARED = {
    frozenset(("image", "output")): {"image": 1, "output": 1},
    frozenset(("image", "kernel")): {"image": -1, "kernel": -2},
    frozenset(("kernel", "output")): {"kernel": -1, "output": -1},
}


def convolve(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """`[groups, N, *output, O]` of `[groups, N, *image, C]` and `[groups, *window, C, O]`; see `ConvSpec`."""
    if is_plain(image) and is_plain(kernel):
        return _convolution_p.bind(image, kernel, out="output", **params)
    return lowering.implement(image, kernel, out="output", **{**params, "direct": False})


def _shape_and_dtype(first, second, *, out, spec, dtype, **_):
    if out == "output":
        shape = first.shape[1], *spec.output, second.shape[-1]
    elif out == "image":
        shape = second.shape[1], *spec.image, first.shape[-2]
    else:
        shape = *spec.window, first.shape[-1], second.shape[-1]
    return (first.shape[0], *shape), dtype


def _jvp(primals, tangents, **params):
    terms = [
        _convolution_p.bind(*(tangent if at == moving else primal for at, primal in enumerate(primals)), **params)
        for moving, tangent in enumerate(tangents)
        if type(tangent) is not Zero
    ]
    return _convolution_p.bind(*primals, **params), functools.reduce(jnp.add, terms)


def _transpose(cotangent, first, second, *, out, dtype, **params):
    if type(cotangent) is Zero:
        return None, None
    operands = dict(zip(OPERANDS[out], (first, second), strict=True))
    sought = next(name for name, operand in operands.items() if is_undefined_primal(operand))
    known = {**operands, out: cotangent}
    pair = (known[name] for name in OPERANDS[sought])
    vjp = _convolution_p.bind(*pair, out=sought, dtype=operands[sought].aval.dtype, **params)
    return tuple(vjp if name == sought else None for name in operands)


def _batch(operands, axes, *, out, **params):
    names = OPERANDS[out]
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    first = {
        name: jnp.moveaxis(x, axis, 0) for name, x, axis in zip(names, operands, axes, strict=True) if axis is not None
    }
    if len(first) == 2:
        y = _convolution_p.bind(*(first[name].reshape(-1, *first[name].shape[2:]) for name in names), out=out, **params)
        return y.reshape(size, -1, *y.shape[1:]), 0
    (name,) = first
    shared = _SHARED[frozenset((name, out))]
    joined = _join(first[name], shared[name])
    y = _convolution_p.bind(
        *(joined if each == name else x for each, x in zip(names, operands, strict=True)), out=out, **params
    )
    return _split(y, shared[out], size), 0


def _join(x, axis):
    """`x` with its leading axis merged into axis `axis`, which is numbered without the leading axis."""
    at = axis if axis > 0 else x.ndim - 1 + axis
    x = jnp.moveaxis(x, 0, at)
    return x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])


def _split(x, axis, size):
    at = axis if axis > 0 else x.ndim + axis
    return jnp.moveaxis(x.reshape(*x.shape[:at], size, -1, *x.shape[at + 1 :]), at, 0)


_convolution_p = deferred.primitive(
    "convolution", lowering.implement, _shape_and_dtype, jvp=_jvp, transpose=_transpose, batch=_batch
)
