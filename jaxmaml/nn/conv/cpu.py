"""Convolution and its slopes by XLA's own on a CPU.

XLA has a fast convolution there, but for few of the shapes that derivatives and `vmap` make of one. So the slopes are
written in its terms here.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.conv.im2col import in_groups, window_bytes
from jaxmaml.nn.conv.spec import Form, Sizes

# Measured with 3 x 3 windows and one thread, as a device of `task_mesh` has (`python -m benchmarks.convolutions`):
# XLA's own takes 0.4 to 1.1 of the time of gathered windows, but for fewer output pixels than these, where to turn the
# kernel round or to transpose the image costs more than it saves.
_FEWEST_PIXELS = {"output": 128, "image": 400, "kernel": 400}
# With fewer input channels it is fast once the columns of a window are gathered as channels, and with fewer filters
# once two neighbouring pixels have theirs side by side; but not for the slope of so thin an image.
_FEWEST_CHANNELS = 32
_FEWEST_FILTERS = 64


def possible(form: Form, dtype: jnp.dtype) -> bool:
    """Whether XLA has a fast convolution for it."""
    within = all(0 <= edge < side for edges, side in zip(form.padding, form.window, strict=True) for edge in edges)
    steps = {*form.strides, *form.holes, *form.dilation}
    return dtype == jnp.float32 and len(form.image) == 2 and form.window != (1, 1) and within and steps == {1}


def gains(out: str, sizes: Sizes, one_thread: bool) -> bool:
    """Whether it is faster than gathered windows."""
    # Not for groups of features, which may be as many and as small as features are. With a thread for each core,
    # gathered windows gain as much.
    thin = sizes.filters if sizes.groups > 1 else _FEWEST_CHANNELS
    if not one_thread or thin < _FEWEST_CHANNELS or (out == "image" and sizes.channels < _FEWEST_CHANNELS):
        return False
    return sizes.pixels >= _FEWEST_PIXELS[out]


def convolve(first: jax.Array, second: jax.Array, out: str, form: Form, precision) -> jax.Array:
    """`out` from the two others, one group after another."""

    def of_group(pair):
        return _FORMS[out](*pair, form, precision)

    if first.shape[0] == 1:
        return of_group((first[0], second[0]))[None]
    return lax.map(of_group, (first, second))


def _output(image, kernel, form: Form, precision):
    (height, width), (rows, columns), filters = form.window, form.padding, kernel.shape[-1]
    if image.shape[-1] < _FEWEST_CHANNELS:
        pixels = 2 if filters < _FEWEST_FILTERS and form.output[1] % 2 == 0 else 1
        image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), (*columns, 0), (0, 0, 0)])
        stop = form.output[1] - pixels + 1
        image = jnp.concatenate([image[:, :, k : k + stop : pixels] for k in range(width + pixels - 1)], axis=-1)
        # Each pixel of a pair has the window's columns from its own on.
        places = [jnp.pad(kernel, ((0, 0), (k, pixels - 1 - k), (0, 0), (0, 0))) for k in range(pixels)]
        kernel, columns = jnp.stack(places, axis=-2).reshape(height, 1, -1, pixels * filters), (0, 0)
    output = lax.conv_general_dilated(
        image, kernel, (1, 1), (rows, columns), dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )
    return output.reshape(image.shape[0], *form.output, filters)


def _image(kernel, output, form: Form, precision):
    """The convolution of `output` by the kernel turned round; behind a barrier, or XLA would have it in its terms."""
    turned = lax.optimization_barrier(jnp.swapaxes(kernel[::-1, ::-1], -1, -2))
    padding = [(side - 1 - low, side - 1 - high) for side, (low, high) in zip(form.window, form.padding, strict=True)]
    form = form._replace(image=form.output, output=form.image, padding=tuple(padding))
    return _output(output, turned, form, precision)


def _kernel(image, output, form: Form, precision):
    """For each column of the window, a one-dimensional convolution of the rows of all examples by those of `output`.

    Their columns are its channels, and its examples are the image's channels; zero rows keep examples apart.
    """
    height, width = form.window
    zero = jnp.zeros((), image.dtype)

    def of(image, output):
        examples, channels = image.shape[0], image.shape[-1]
        rows = form.output[0] + height - 1
        image = lax.pad(image, zero, [(0, 0, 0), *((low, high, 0) for low, high in form.padding), (0, 0, 0)])
        image = jnp.transpose(image.reshape(examples * rows, -1, channels), (2, 0, 1))
        output = lax.pad(output, zero, [(0, 0, 0), (0, height - 1, 0), (0, 0, 0), (0, 0, 0)])
        output = output.reshape(examples * rows, *output.shape[2:])[: examples * rows - height + 1]
        by_column = [
            lax.conv_general_dilated(
                image[:, :, k : k + form.output[1]],
                output,
                (1,),
                [(0, 0)],
                dimension_numbers=("NWC", "WIO", "NWC"),
                precision=precision,
            )
            for k in range(width)
        ]
        return jnp.transpose(jnp.stack(by_column, axis=2), (1, 2, 0, 3))

    return in_groups(of, (image, output), window_bytes(form, image.shape[-1], image.dtype), total=True)


_FORMS = {"output": _output, "image": _image, "kernel": _kernel}
