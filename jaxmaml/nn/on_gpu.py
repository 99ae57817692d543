"""Convolution and its slopes by XLA's own on a GPU, which is cuDNN's: with groups where each task has a kernel."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.form import Form, Sizes

# From a first look at layers on one NVIDIA H200 (`python -m benchmarks.convolutions` makes such tables); the whole step
# is in benchmarks/results/meta_step_gpu_more.json. Gathered windows are written and read again, nine times the image;
# what is multiplied for it grows with the filters, and hides it from 128 on.
_MOST_FILTERS = 64
# With fewer input channels cuDNN's slopes take up to five times as long as gathered windows.
_FEWEST_CHANNELS = 32
# Below, each kernel takes as long as its launch, and gathered windows need fewer.
_FEWEST_PIXELS = 1 << 14
# Kernel slopes of few groups, each over many pixels, leave most of the card idle.
_FEWEST_GROUPS = 32


def possible(form: Form, dtype: jnp.dtype) -> bool:
    """Whether there is anything to try: a product is a product, and an input with holes is none of cuDNN's."""
    del dtype
    return set(form.window) != {1} and set(form.holes) == {1}


def gains(out: str, form: Form, sizes: Sizes, one_thread: bool) -> bool:
    """Whether it is faster than gathered windows."""
    del one_thread
    if sizes.channels == 1 or sizes.groups * sizes.pixels < _FEWEST_PIXELS:
        return False
    many_channels, few_filters = sizes.channels >= _FEWEST_CHANNELS, sizes.filters <= _MOST_FILTERS
    if sizes.groups == 1:
        return out == "output" or (few_filters and (many_channels or out == "kernel"))
    # A stride of two makes windows a quarter as many, but not the transposes that groups cost.
    strided = set(form.strides) != {1}
    return many_channels and few_filters and not strided and (out != "kernel" or sizes.groups >= _FEWEST_GROUPS)


def convolve(first: jax.Array, second: jax.Array, out: str, form: Form, precision) -> jax.Array:
    """`out` from the two others; the slopes are `lax`'s."""

    def of_group(image, kernel):
        return lax.conv_general_dilated(
            image,
            kernel,
            form.strides,
            form.padding,
            form.holes,
            form.dilation,
            ("N" + axes + "C", axes + "IO", "N" + axes + "C"),
            precision=precision,
        )

    def of_groups(image, kernel):
        # One group without its axis, or XLA would make a convolution with groups of it.
        return of_group(image[0], kernel[0])[None] if image.shape[0] == 1 else jax.vmap(of_group)(image, kernel)

    axes = "HWD"[: len(form.image)]
    if out == "output":
        return of_groups(first, second)
    if out == "image":
        kernel, output = first, second
        image = jax.ShapeDtypeStruct((*output.shape[:2], *form.image, kernel.shape[-2]), output.dtype)
        return jax.linear_transpose(lambda image: of_groups(image, kernel), image)(output)[0]
    image, output = first, second
    kernel = jax.ShapeDtypeStruct((image.shape[0], *form.window, image.shape[-1], output.shape[-1]), output.dtype)
    return jax.linear_transpose(lambda kernel: of_groups(image, kernel), kernel)(output)[0]
