"""The block of few-shot classifiers: convolution, normalisation, activation and pooling, fused where that is faster."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen

from jaxmaml.nn.layers import BatchNorm
from jaxmaml.nn.pooling import max_pool


class Unfinished(NamedTuple):
    """The output of a block before its last elementwise operations, which the next block fuses into its own.

    Attributes:
      pooled: Outputs of the convolution after pooling, `[num_examples, height, width, features]`.
      finish: Normalisation and activation, applied to any of the examples.
    """

    pooled: jax.Array
    finish: Callable[[jax.Array], jax.Array]


def finished(x: jax.Array | Unfinished) -> jax.Array:
    """The output of a block as an array, with its normalisation and activation applied; an array is returned as it is.

    Args:
      x: What `conv_block` returned, or an array.
    Returns:
      Array `[num_examples, height, width, features]`.
    """
    return x.finish(x.pooled) if isinstance(x, Unfinished) else x


def conv_block(
    x: jax.Array | Unfinished,
    features: int,
    *,
    strides: int,
    pool: bool,
    normalisation: str,
    use_scale: bool,
    num_support: int | None,
    conv_general_dilated: Callable[..., jax.Array],
) -> jax.Array | Unfinished:
    """Equal to `relu(max_pool(norm(conv(x))))`; call it in a compact method, where it adds its layers to the model.

    With batch normalisation on a CPU, convolution and pooling run in groups of examples that fit the cache, and
    normalisation and activation wait for the next block, which applies them in its own groups. So no block's
    activations are ever held whole in memory. `finished` gives the array itself.

    Args:
      x: Images `[num_examples, height, width, channels]`, or the previous block's output.
      features: Number of filters.
      strides: Of the convolution.
      pool: Whether to max-pool by 2 x 2.
      normalisation: `"batch"`, `"layer"` or `"group"`, as in `Conv4`.
      use_scale: Whether the normalisation learns a scale.
      num_support: Take the batch statistics of the first so many examples; `None` for all.
      conv_general_dilated: The convolution.
    """
    conv = linen.Conv(
        features,
        kernel_size=(3, 3),
        strides=strides,
        kernel_init=linen.initializers.xavier_uniform(),
        conv_general_dilated=conv_general_dilated,
    )
    if normalisation == "batch":
        return _with_batch_norm(x, conv, max_pool if pool else None, BatchNorm(use_scale=use_scale), num_support)
    groups = 8 if normalisation == "group" else 1
    x = linen.GroupNorm(groups, use_scale=use_scale, epsilon=1e-3)(conv(finished(x)))
    return linen.relu(max_pool(x) if pool else x)


def _with_batch_norm(x, conv: linen.Conv, pool, norm: BatchNorm, num_support: int | None) -> Unfinished:
    if conv.is_initializing():
        conv(finished(x))
    module, variables = conv.unbind()
    kernel, shift = (variables["params"][name] for name in ("kernel", "bias"))
    without_bias: Any = module.clone(use_bias=False)
    inputs, finish = x if isinstance(x, Unfinished) else (x, lambda examples: examples)

    def layer(examples):
        return without_bias.apply({"params": {"kernel": kernel}}, finish(examples))

    pooled, normalise = norm(inputs, layer, pool, num_support, defer=True, shift=shift)
    return Unfinished(pooled, lambda examples: linen.relu(normalise(examples)))
