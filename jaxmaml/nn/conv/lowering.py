"""The choice of how a convolution, or a VJP of one, is computed: by matmuls, or by XLA's own convolution."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.conv import cpu
from jaxmaml.nn.conv.im2col import MATMULS
from jaxmaml.nn.conv.spec import ConvSpec, Sizes


def implement(first, second, *, out, spec, precision, dtype, direct, one_thread=False) -> jax.Array:
    """The array `out` from the other two of `image`, `kernel` and `output`, all `[groups, ...]`; see `primitive`.

    Args:
      first, second: The other two, in the order of `OPERANDS`.
      out: The name of the array to compute.
      spec: The sizes along the spatial axes.
      precision: The precision of the matmuls.
      dtype: The dtype of the result.
      direct: Whether XLA's own convolution may be used.
      one_thread: Whether the device has a single thread.
    """
    dtype = jnp.dtype(dtype)
    may = direct and jax.default_backend() == "cpu" and {first.dtype, second.dtype} == {dtype}
    sizes = sizes_of(first, second, out, spec)
    if may and not _of_matmuls_only(precision) and cpu.possible(spec, dtype) and cpu.gains(out, sizes, one_thread):
        return cpu.convolve(first, second, out, spec, precision)
    return by_matmuls(first, second, out=out, spec=spec, precision=precision, dtype=dtype)


def by_matmuls(first, second, *, out, spec: ConvSpec, precision, dtype) -> jax.Array:
    """The same by matmuls of im2col patches, whether or not that is faster."""
    function = functools.partial(MATMULS[out], spec=spec, precision=precision, dtype=dtype)
    if first.shape[0] == 1:
        return function(first[0], second[0])[None]
    return jax.vmap(function)(first, second)


def sizes_of(first: jax.Array, second: jax.Array, out: str, spec: ConvSpec) -> Sizes:
    """The sizes of batch and channels, from the two operands of `out`."""
    examples = (second if out == "image" else first).shape[1]
    return Sizes(
        groups=first.shape[0],
        channels=first.shape[-2 if out == "image" else -1],
        filters=second.shape[-1],
        pixels=examples * math.prod(spec.output),
    )


def _of_matmuls_only(precision) -> bool:
    if isinstance(precision, str):
        return precision in lax.DotAlgorithmPreset.__members__
    return isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset)
