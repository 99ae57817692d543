"""Convolution that stays fast when every task has its own kernel."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml import checks
from jaxmaml.nn.streaming import map_examples


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    lowering: str = "auto",
) -> jax.Array:
    r"""Convolve as `jax.lax.conv_general_dilated` does, by matrix products.

    Fast parameters differ from task to task, and `vmap` over kernels makes `lax`'s convolution a grouped
    one, tens of times slower on a CPU. Here the windows are gathered by one strided slice for each position
    in the kernel and multiplied by the flattened kernel,

        y[n, i, :] = concat_k x[n, i * stride + k * dilation, :] @ reshape(kernel, (prod k * C, O)),

    so that `vmap` makes a batched matrix product, and so do the first and second derivatives. On a CPU a
    large batch is taken in groups of examples that fit its cache, whose windows are gathered again for the
    derivative: the copies are never all in memory.

    Args:
      lhs: Input; `[N, *spatial, C]` unless `dimension_numbers` say otherwise.
      rhs: Kernel; `[*window, C / feature_group_count, O]` unless they say otherwise.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type: As in `jax.lax.conv_general_dilated`.
      lowering: `"matmul"`, `"lax"` (leave it to XLA) or `"auto"`: matrix products, but for
        `batch_group_count` > 1, which only `lax` knows. To choose for a model, pass
        `functools.partial(conv_general_dilated, lowering=...)` to its layers.

    Returns:
      Output `[N, *spatial_out, O]`, or as `dimension_numbers` say.

    Raises:
      ValueError, TypeError: As `jax.lax.conv_general_dilated` does; or if `lowering` is unknown.

    Example:
      A drop-in for flax's layers, `nn.Conv(..., conv_general_dilated=jaxmaml.nn.conv_general_dilated)`:

      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
      >>> dims = ("NHWC", "HWIO", "NHWC")
      >>> jaxmaml.nn.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims).shape
      (2, 4, 4, 16)
    """
    checks.one_of("lowering", lowering, ("auto", "matmul", "lax"))
    call = {
        "window_strides": window_strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
    }
    # lax checks the arguments and knows the output's shape.
    expected = jax.eval_shape(lambda x, k: lax.conv_general_dilated(x, k, **call), lhs, rhs)
    if lowering == "lax" or batch_group_count != 1 or 0 in (lhs.size, rhs.size, expected.size):
        return lax.conv_general_dilated(lhs, rhs, **call)

    dims = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ndim = lhs.ndim - 2
    x = jnp.transpose(lhs, (dims.lhs_spec[0], *dims.lhs_spec[2:], dims.lhs_spec[1]))
    kernel = jnp.transpose(rhs, (*dims.rhs_spec[2:], dims.rhs_spec[1], dims.rhs_spec[0]))
    size = tuple(expected.shape[d] for d in dims.out_spec[2:])
    dilation = tuple(rhs_dilation or (1,) * ndim)
    holes = tuple(lhs_dilation or (1,) * ndim)
    if isinstance(padding, str):
        reach = [(w - 1) * d + 1 for w, d in zip(kernel.shape[:ndim], dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, window_strides, padding)
    # lax.pad takes the negative widths that lax's convolution takes, and the holes of an input dilation.
    edges = [(0, 0, 0), *((low, high, hole - 1) for (low, high), hole in zip(padding, holes, strict=True)), (0, 0, 0)]
    channels = kernel.shape[-2]

    def convolve(x, kernel):
        """Channels-last convolution of one feature group."""
        padded = lax.pad(x, jnp.zeros((), x.dtype), edges)

        def shifted(offsets):
            start = [k * d for k, d in zip(offsets, dilation, strict=True)]
            stop = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, size, window_strides, strict=True)]
            return lax.slice(padded, (0, *start, 0), (x.shape[0], *stop, channels), (1, *window_strides, 1))

        windows = jnp.concatenate([shifted(k) for k in itertools.product(*map(range, kernel.shape[:ndim]))], axis=-1)
        product = lax.dot(
            windows.reshape(-1, windows.shape[-1]),
            kernel.reshape(-1, kernel.shape[-1]),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
        return product.reshape(x.shape[0], *size, kernel.shape[-1])

    def grouped(x):
        if feature_group_count == 1:
            return convolve(x, kernel)
        by_group = x.reshape(*x.shape[:-1], feature_group_count, channels)
        kernels = kernel.reshape(*kernel.shape[:-1], feature_group_count, -1)
        y = jax.vmap(convolve, in_axes=(-2, -2), out_axes=-2)(by_group, kernels)
        return y.reshape(*y.shape[:-2], -1)

    window_bytes = math.prod(size) * math.prod(kernel.shape[:ndim]) * x.shape[-1] * x.dtype.itemsize
    y = map_examples(grouped, x, bytes_per_example=window_bytes)
    to_out = dict(zip((dims.out_spec[0], *dims.out_spec[2:], dims.out_spec[1]), range(ndim + 2), strict=True))
    return jnp.transpose(y, [to_out[d] for d in range(ndim + 2)])
