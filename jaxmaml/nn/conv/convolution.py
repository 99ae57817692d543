"""Convolution that stays fast when every task has its own kernel."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml import checks
from jaxmaml.execution.rewriting.switch import is_enabled
from jaxmaml.jax_internals import flag
from jaxmaml.nn.conv import primitive
from jaxmaml.nn.conv.spec import ConvSpec


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
    r"""Convolve as `jax.lax.conv_general_dilated` does, with an implementation chosen after derivatives and `vmap`.

    Fast parameters differ from task to task, and `vmap` over kernels makes `lax`'s convolution a grouped convolution,
    which is tens of times slower on a CPU, as are most convolutions in its derivatives. Here the convolution stays one
    primitive, closed under differentiation and `vmap`, until it is compiled. Then im2col patches are formed, by one
    strided slice for each position in the kernel, and multiplied by the flattened kernel,

        y[n, i, :] = concat_k x[n, i * stride + k * dilation, :] @ reshape(kernel, (prod k * C, O)),

    which is a batched matmul where each task has its own kernel. The VJPs are computed in the same way. On the CPU
    devices of `jaxmaml.task_mesh()`, larger float32 images with strides of one use XLA's own convolution, one task
    after another, also for the VJPs, unless the learner has `rewrite=False`. (These multiply some entries by zero, so
    that an input that is not finite may make more entries NaN than the formula does.) On a CPU, patches are formed
    for groups of examples that fit the cache, and recomputed for the derivative, so that the patches of all examples
    are never in memory together.

    Args:
      lhs: Input; `[N, *spatial, C]` unless `dimension_numbers` say otherwise.
      rhs: Kernel; `[*window, C / feature_group_count, O]` unless they say otherwise.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type: As in `jax.lax.conv_general_dilated`.
      lowering: `"matmul"` always uses matmuls, `"lax"` is `jax.lax.conv_general_dilated` itself, and `"auto"` chooses
        as described above, except that `batch_group_count` > 1 uses `lax`. To choose for a model, pass
        `functools.partial(conv_general_dilated, lowering=...)` to its layers. With the environment variable
        `JAXMAML_REWRITE=0` it is `"lax"` everywhere.

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
    if lowering == "lax" or not is_enabled() or batch_group_count != 1 or 0 in (lhs.size, rhs.size, expected.size):
        return lax.conv_general_dilated(lhs, rhs, **call)

    dims = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ndim = lhs.ndim - 2
    x = jnp.transpose(lhs, (dims.lhs_spec[0], *dims.lhs_spec[2:], dims.lhs_spec[1]))
    kernel = jnp.transpose(rhs, (*dims.rhs_spec[2:], dims.rhs_spec[1], dims.rhs_spec[0]))
    dilation = _sizes(rhs_dilation, ndim)
    if isinstance(padding, str):
        reach = [(w - 1) * d + 1 for w, d in zip(kernel.shape[:ndim], dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, window_strides, padding)
    spec = ConvSpec(
        image=x.shape[1:-1],
        window=kernel.shape[:ndim],
        strides=_sizes(window_strides, ndim),
        padding=tuple((int(low), int(high)) for low, high in padding),
        holes=_sizes(lhs_dilation, ndim),
        dilation=dilation,
        output=tuple(expected.shape[d] for d in dims.out_spec[2:]),
    )
    groups = feature_group_count
    by_group = jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -2, 0)
    kernels = jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], groups, -1), -2, 0)
    # The precision in force now: the convolution is compiled later, and its derivatives need the same precision.
    precision = flag("jax_default_matmul_precision") if precision is None else precision
    y = primitive.convolve(
        by_group, kernels, spec=spec, precision=precision, dtype=expected.dtype, direct=lowering == "auto"
    )
    y = jnp.moveaxis(y, 0, -2).reshape(x.shape[0], *spec.output, -1)
    to_out = dict(zip((dims.out_spec[0], *dims.out_spec[2:], dims.out_spec[1]), range(ndim + 2), strict=True))
    return jnp.transpose(y, [to_out[d] for d in range(ndim + 2)])


def _sizes(sizes: Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Of any sequence, an array too; ones by default."""
    return (1,) * ndim if sizes is None else tuple(map(int, sizes))
