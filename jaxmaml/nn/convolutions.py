"""How a convolution, or a slope of one, is computed: by matrix products, or by XLA's own convolution.

XLA has a fast convolution for a CPU, but for few of the shapes that derivatives and `vmap` make of one. So the slopes
are written in its terms here, and everything else is gathered windows times a matrix.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.streaming import group_size

# Measured on one and on two cores with 3 x 3 windows: XLA's own takes 0.3 to 0.7 of the time of gathered windows, but
# for fewer output pixels than these, where to turn the kernel round or to transpose the image costs more than it saves.
_FEWEST_PIXELS = {"output": 128, "image": 400, "kernel": 400}
# With a thread for each core, gathered windows gain more.
_FEWEST_PIXELS_OF_THREADS = {**_FEWEST_PIXELS, "kernel": 4000}
# With fewer input channels it is fast once the columns of a window are gathered as channels, and with fewer filters
# once two neighbouring pixels have theirs side by side.
_FEWEST_CHANNELS = 32
_FEWEST_FILTERS = 64


class Form(NamedTuple):
    """What a convolution is, apart from the sizes of its batch and channels."""

    image: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    holes: tuple[int, ...]  # lhs_dilation
    dilation: tuple[int, ...]  # rhs_dilation
    output: tuple[int, ...]

    @property
    def direct(self) -> bool:
        """Whether XLA's fast convolution on a CPU can take it, and its slopes."""
        within = all(0 <= edge < side for edges, side in zip(self.padding, self.window, strict=True) for edge in edges)
        steps = {*self.strides, *self.holes, *self.dilation}
        return len(self.image) == 2 and self.window != (1, 1) and within and steps == {1}


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
    direct = direct and _gains(first, second, out, form, precision, dtype, one_thread)
    function = functools.partial(
        (_DIRECT if direct else _BY_PRODUCTS)[out], form=form, precision=precision, dtype=jnp.dtype(dtype)
    )
    if first.shape[0] == 1:
        return function(first[0], second[0])[None]
    return lax.map(lambda pair: function(*pair), (first, second)) if direct else jax.vmap(function)(first, second)


def _gains(first, second, out, form: Form, precision, dtype, one_thread) -> bool:
    """Whether XLA's own convolution can be used and is faster."""
    groups, examples = first.shape[0], (second if out == "image" else first).shape[1]
    filters = (first if out == "image" else second).shape[-1]
    fewest = (_FEWEST_PIXELS if one_thread else _FEWEST_PIXELS_OF_THREADS)[out]
    return (
        jax.default_backend() == "cpu"
        and form.direct
        and {first.dtype, second.dtype, jnp.dtype(dtype)} == {jnp.dtype("float32")}
        and not _of_products_only(precision)
        and examples * math.prod(form.output) >= fewest
        # Not for groups of features, which may be as many and as small as features are.
        and (groups == 1 or filters >= _FEWEST_CHANNELS)
    )


def _of_products_only(precision) -> bool:
    if isinstance(precision, str):
        return precision in lax.DotAlgorithmPreset.__members__
    return isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset)


def _dot(x, y, contracted, precision, dtype):
    wide = jnp.promote_types(dtype, jnp.result_type(x, y))
    product = lax.dot_general(x, y, (contracted, ((), ())), precision=precision, preferred_element_type=wide)
    return product.astype(dtype)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _windows(image, form: Form):
    """`[N, *output, prod(window) * C]`: by one strided slice for each position in the window."""
    # lax.pad takes the negative widths that lax's convolution takes, and the holes of an input dilation.
    edges = [(low, high, hole - 1) for (low, high), hole in zip(form.padding, form.holes, strict=True)]
    padded = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def shifted(offsets):
        start = [k * d for k, d in zip(offsets, form.dilation, strict=True)]
        stop = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, form.output, form.strides, strict=True)]
        return lax.slice(padded, (0, *start, 0), (image.shape[0], *stop, image.shape[-1]), (1, *form.strides, 1))

    return jnp.concatenate([shifted(k) for k in itertools.product(*map(range, form.window))], axis=-1)


def _in_groups(function: Callable, examples: tuple, bytes_per_example: int, total: bool) -> jax.Array:
    """`function` of groups of the examples whose windows fit the cache; their results joined, or in `total`."""
    num_examples = examples[0].shape[0]
    size = group_size(num_examples, bytes_per_example)
    if size == num_examples:
        return function(*examples)
    if not total:
        y = lax.map(lambda group: function(*group), [x.reshape(-1, size, *x.shape[1:]) for x in examples])
        return y.reshape(num_examples, *y.shape[2:])

    def add(sums, first):
        # Sliced in place: a scan over groups would copy all of them.
        return sums + function(*(lax.dynamic_slice_in_dim(x, first, size) for x in examples)), None

    like = jax.eval_shape(function, *(x[:size] for x in examples))
    return lax.scan(add, jnp.zeros(like.shape, like.dtype), jnp.arange(0, num_examples, size))[0]


def _window_bytes(form: Form, channels: int, dtype) -> int:
    return math.prod((*form.output, *form.window, channels, jnp.dtype(dtype).itemsize))


def _output(image, kernel, form: Form, precision, dtype):
    def of(image):
        y = _dot(_rows(_windows(image, form)), _rows(kernel), ((1,), (0,)), precision, dtype)
        return y.reshape(image.shape[0], *form.output, kernel.shape[-1])

    return _in_groups(of, (image,), _window_bytes(form, image.shape[-1], image.dtype), total=False)


def _image(kernel, output, form: Form, precision, dtype):
    def of(output):
        windows = _dot(_rows(output), _rows(kernel), ((1,), (1,)), precision, dtype)
        image = jax.ShapeDtypeStruct((output.shape[0], *form.image, kernel.shape[-2]), dtype)
        scatter = jax.linear_transpose(lambda image: _windows(image, form), image)
        return scatter(windows.reshape(*output.shape[:-1], windows.shape[-1]))[0]

    return _in_groups(of, (output,), _window_bytes(form, kernel.shape[-2], output.dtype), total=False)


def _kernel(image, output, form: Form, precision, dtype):
    def of(image, output):
        return _dot(_rows(_windows(image, form)), _rows(output), ((0,), (0,)), precision, dtype)

    kernel = _in_groups(of, (image, output), _window_bytes(form, image.shape[-1], image.dtype), total=True)
    return kernel.reshape(*form.window, image.shape[-1], output.shape[-1])


def _direct_output(image, kernel, form: Form, precision, dtype):
    del dtype
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


def _direct_image(kernel, output, form: Form, precision, dtype):
    """The convolution of `output` by the kernel turned round; behind a barrier, or XLA would have it in its terms."""
    turned = lax.optimization_barrier(jnp.swapaxes(kernel[::-1, ::-1], -1, -2))
    padding = [(side - 1 - low, side - 1 - high) for side, (low, high) in zip(form.window, form.padding, strict=True)]
    form = form._replace(image=form.output, output=form.image, padding=tuple(padding))
    return _direct_output(output, turned, form, precision, dtype)


def _direct_kernel(image, output, form: Form, precision, dtype):
    """For each column of the window, a one-dimensional convolution of the rows of all examples by those of `output`.

    Their columns are its channels, and its examples are the image's channels; zero rows keep examples apart.
    """
    del dtype
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

    return _in_groups(of, (image, output), _window_bytes(form, image.shape[-1], image.dtype), total=True)


_BY_PRODUCTS = {"output": _output, "image": _image, "kernel": _kernel}
_DIRECT = {"output": _direct_output, "image": _direct_image, "kernel": _direct_kernel}
