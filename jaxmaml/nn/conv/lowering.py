"""How a convolution, or a slope of one, is computed: by matrix products, or by XLA's own convolution."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.conv import cpu
from jaxmaml.nn.conv.im2col import PRODUCTS
from jaxmaml.nn.conv.spec import Form, Sizes


def implement(first, second, *, out, form, precision, dtype, direct, one_thread=False) -> jax.Array:
    """`out` from the two others of `image`, `kernel` and `output`, all `[groups, ...]`; see `trilinear`.

    Args:
      first, second: The two.
      out: Name of the third.
      form: See `Form`.
      precision: Of the products.
      dtype: Of the result.
      direct: Whether XLA's own convolution may be used.
      one_thread: Whether the device has one thread only.
    """
    dtype = jnp.dtype(dtype)
    may = direct and jax.default_backend() == "cpu" and {first.dtype, second.dtype} == {dtype}
    sizes = sizes_of(first, second, out, form)
    if may and not _of_products_only(precision) and cpu.possible(form, dtype) and cpu.gains(out, sizes, one_thread):
        return cpu.convolve(first, second, out, form, precision)
    return by_products(first, second, out=out, form=form, precision=precision, dtype=dtype)


def by_products(first, second, *, out, form: Form, precision, dtype) -> jax.Array:
    """The same by gathered windows, whatever is faster."""
    function = functools.partial(PRODUCTS[out], form=form, precision=precision, dtype=dtype)
    if first.shape[0] == 1:
        return function(first[0], second[0])[None]
    return jax.vmap(function)(first, second)


def sizes_of(first: jax.Array, second: jax.Array, out: str, form: Form) -> Sizes:
    """The sizes of batch and channels, read off the two operands that make `out`."""
    examples = (second if out == "image" else first).shape[1]
    return Sizes(
        groups=first.shape[0],
        channels=first.shape[-2 if out == "image" else -1],
        filters=second.shape[-1],
        pixels=examples * math.prod(form.output),
    )


def _of_products_only(precision) -> bool:
    if isinstance(precision, str):
        return precision in lax.DotAlgorithmPreset.__members__
    return isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset)
