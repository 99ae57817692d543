"""Convolution and its VJPs by XLA's own convolution on a CPU.

XLA's CPU backend is fast for few of the convolutions that derivatives and `vmap` lead to. The VJPs are therefore
rewritten here as convolutions for which it is fast.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.conv.im2col import in_groups, patch_bytes
from jaxmaml.nn.conv.spec import ConvSpec, Sizes

# Measured with 3 x 3 windows and one thread, as a device of `task_mesh` has (`python -m benchmarks.convolutions`):
# XLA's own convolution takes 0.4 to 1.1 of the time of im2col, except for fewer output pixels than these, where
# flipping the kernel or transposing the image costs more than it saves.
_FEWEST_PIXELS = {"output": 128, "image": 400, "kernel": 400}
# With fewer input channels it is fast if the columns of a window become channels, and with fewer filters if two
# neighbouring pixels are computed together. Neither helps the VJP with respect to an image of so few channels.
_FEWEST_CHANNELS = 32
_FEWEST_FILTERS = 64


def possible(spec: ConvSpec, dtype: jnp.dtype) -> bool:
    """Whether XLA's CPU backend has a fast convolution of this kind."""
    within = all(0 <= edge < side for edges, side in zip(spec.padding, spec.window, strict=True) for edge in edges)
    steps = {*spec.strides, *spec.holes, *spec.dilation}
    return dtype == jnp.float32 and len(spec.image) == 2 and spec.window != (1, 1) and within and steps == {1}


def gains(out: str, sizes: Sizes, one_thread: bool) -> bool:
    """Whether XLA's own convolution is faster than im2col here, by the measurements above.

    Args:
      out: The array that is computed: `"output"`, `"image"` or `"kernel"`.
      sizes: The sizes of batch and channels.
      one_thread: Whether the device has a single thread.
    """
    # Not for many small groups of features. Where XLA has a thread for each core, im2col is as fast.
    thin = sizes.filters if sizes.groups > 1 else _FEWEST_CHANNELS
    if not one_thread or thin < _FEWEST_CHANNELS or (out == "image" and sizes.channels < _FEWEST_CHANNELS):
        return False
    return sizes.pixels >= _FEWEST_PIXELS[out]


def convolve(first: jax.Array, second: jax.Array, out: str, spec: ConvSpec, precision) -> jax.Array:
    """The array `out` from the other two, one group after another."""

    def of_group(pair):
        return _CONVOLUTIONS[out](*pair, spec, precision)

    if first.shape[0] == 1:
        return of_group((first[0], second[0]))[None]
    return lax.map(of_group, (first, second))


def _output(image, kernel, spec: ConvSpec, precision):
    (height, width), (rows, columns), filters = spec.window, spec.padding, kernel.shape[-1]
    if image.shape[-1] < _FEWEST_CHANNELS:
        pixels = 2 if filters < _FEWEST_FILTERS and spec.output[1] % 2 == 0 else 1
        image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), (*columns, 0), (0, 0, 0)])
        stop = spec.output[1] - pixels + 1
        image = jnp.concatenate([image[:, :, k : k + stop : pixels] for k in range(width + pixels - 1)], axis=-1)
        # Each pixel of a pair has the window's columns from its own on.
        places = [jnp.pad(kernel, ((0, 0), (k, pixels - 1 - k), (0, 0), (0, 0))) for k in range(pixels)]
        kernel, columns = jnp.stack(places, axis=-2).reshape(height, 1, -1, pixels * filters), (0, 0)
    output = lax.conv_general_dilated(
        image, kernel, (1, 1), (rows, columns), dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )
    return output.reshape(image.shape[0], *spec.output, filters)


def _image(kernel, output, spec: ConvSpec, precision):
    """The convolution of `output` by the flipped kernel; a barrier keeps XLA from undoing the flip."""
    turned = lax.optimization_barrier(jnp.swapaxes(kernel[::-1, ::-1], -1, -2))
    padding = [(side - 1 - low, side - 1 - high) for side, (low, high) in zip(spec.window, spec.padding, strict=True)]
    spec = spec._replace(image=spec.output, output=spec.image, padding=tuple(padding))
    return _output(output, turned, spec, precision)


def _kernel(image, output, spec: ConvSpec, precision):
    """For each column of the window, a one-dimensional convolution along the rows of all examples.

    The columns become the channels of that convolution, and the image's channels its examples. Rows of zeros separate
    the examples.
    """
    height, width = spec.window
    zero = jnp.zeros((), image.dtype)

    def of(image, output):
        examples, channels = image.shape[0], image.shape[-1]
        rows = spec.output[0] + height - 1
        image = lax.pad(image, zero, [(0, 0, 0), *((low, high, 0) for low, high in spec.padding), (0, 0, 0)])
        image = jnp.transpose(image.reshape(examples * rows, -1, channels), (2, 0, 1))
        output = lax.pad(output, zero, [(0, 0, 0), (0, height - 1, 0), (0, 0, 0), (0, 0, 0)])
        output = output.reshape(examples * rows, *output.shape[2:])[: examples * rows - height + 1]
        by_column = [
            lax.conv_general_dilated(
                image[:, :, k : k + spec.output[1]],
                output,
                (1,),
                [(0, 0)],
                dimension_numbers=("NWC", "WIO", "NWC"),
                precision=precision,
            )
            for k in range(width)
        ]
        return jnp.transpose(jnp.stack(by_column, axis=2), (1, 2, 0, 3))

    return in_groups(of, (image, output), patch_bytes(spec, image.shape[-1], image.dtype), total=True)


_CONVOLUTIONS = {"output": _output, "image": _image, "kernel": _kernel}
