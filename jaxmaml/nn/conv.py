"""Convolution that stays fast when every task has its own kernel."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


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
) -> jax.Array:
    r"""Convolve as `jax.lax.conv_general_dilated` does, by a matrix product.

    Fast parameters differ from task to task, and `vmap` over kernels makes `lax`'s convolution a grouped
    one, tens of times slower on a CPU. Here the windows are gathered by one strided slice for each position
    in the kernel and multiplied by the flattened kernel,

        y[n, i, :] = concat_k x[n, i * stride + k * dilation, :] @ reshape(kernel, (prod k * C, O)),

    so that `vmap` makes a batched matrix product, and so do the first and second derivatives.

    It does so for channels-last arrays (`NHWC`, `HWIO`, and their like in one or three dimensions)
    without groups or input dilation, and leaves any other case to `lax`.

    Args:
      lhs: Input `[N, *spatial, C]`.
      rhs: Kernel `[*window, C, O]`.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type: As in `jax.lax.conv_general_dilated`.

    Returns:
      Output `[N, *spatial_out, O]`.

    Raises:
      ValueError, TypeError: As `jax.lax.conv_general_dilated` does.

    Example:
      A drop-in for flax's layers, `nn.Conv(..., conv_general_dilated=jaxmaml.nn.conv_general_dilated)`:

      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
      >>> dims = ("NHWC", "HWIO", "NHWC")
      >>> jaxmaml.nn.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims).shape
      (2, 4, 4, 16)
    """
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
    dims = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ndim = lhs.ndim - 2
    spatial = tuple(range(1, ndim + 1))
    channels_last = (0, ndim + 1, *spatial)
    kernel_last = (ndim + 1, ndim, *range(ndim))
    plain = feature_group_count == batch_group_count == 1 and all(d == 1 for d in lhs_dilation or ())
    if tuple(dims) != (channels_last, kernel_last, channels_last) or not plain or lhs.size == 0 or rhs.size == 0:
        return lax.conv_general_dilated(lhs, rhs, **call)

    window, (in_channels, out_channels) = rhs.shape[:ndim], rhs.shape[ndim:]
    dilation = tuple(rhs_dilation or (1,) * ndim)
    if isinstance(padding, str):
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
    # lax.pad takes the negative widths that lax's convolution takes.
    zero = jnp.zeros((), lhs.dtype)
    padded = lax.pad(lhs, zero, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    size = expected.shape[1:-1]

    def shifted(offset):
        start = [k * d for k, d in zip(offset, dilation, strict=True)]
        stop = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, size, window_strides, strict=True)]
        return lax.slice(
            padded,
            (0, *start, 0),
            (lhs.shape[0], *stop, in_channels),
            (1, *window_strides, 1),
        )

    patches = jnp.concatenate([shifted(offset) for offset in itertools.product(*map(range, window))], axis=-1)
    flat = patches.reshape(-1, math.prod(window) * in_channels)
    product = lax.dot(
        flat,
        rhs.reshape(-1, out_channels),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return product.reshape(expected.shape)
