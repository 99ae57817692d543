"""Convolution and its VJPs as matmuls of im2col patches."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.nn.conv.spec import ConvSpec
from jaxmaml.nn.example_groups import group_size


def _dot(x, y, contracted, precision, dtype):
    wide = jnp.promote_types(dtype, jnp.result_type(x, y))
    product = lax.dot_general(x, y, (contracted, ((), ())), precision=precision, preferred_element_type=wide)
    return product.astype(dtype)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _patches(image, spec: ConvSpec):
    """The im2col patches `[N, *output, prod(window) * C]`, by one strided slice for each position in the window."""
    # lax.pad takes the negative widths that lax's convolution takes, and the holes of an input dilation.
    edges = [(low, high, hole - 1) for (low, high), hole in zip(spec.padding, spec.holes, strict=True)]
    padded = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def shifted(offsets):
        start = [k * d for k, d in zip(offsets, spec.dilation, strict=True)]
        stop = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, spec.output, spec.strides, strict=True)]
        return lax.slice(padded, (0, *start, 0), (image.shape[0], *stop, image.shape[-1]), (1, *spec.strides, 1))

    return jnp.concatenate([shifted(k) for k in itertools.product(*map(range, spec.window))], axis=-1)


def in_groups(function: Callable, examples: tuple, bytes_per_example: int, total: bool) -> jax.Array:
    """`function` of groups of examples whose patches fit the cache; results are concatenated, or summed if `total`."""
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


def patch_bytes(spec: ConvSpec, channels: int, dtype) -> int:
    """The size of one example's patches in bytes."""
    return math.prod((*spec.output, *spec.window, channels, jnp.dtype(dtype).itemsize))


def _output(image, kernel, spec: ConvSpec, precision, dtype):
    def of(image):
        y = _dot(_rows(_patches(image, spec)), _rows(kernel), ((1,), (0,)), precision, dtype)
        return y.reshape(image.shape[0], *spec.output, kernel.shape[-1])

    return in_groups(of, (image,), patch_bytes(spec, image.shape[-1], image.dtype), total=False)


def _image(kernel, output, spec: ConvSpec, precision, dtype):
    def of(output):
        patches = _dot(_rows(output), _rows(kernel), ((1,), (1,)), precision, dtype)
        image = jax.ShapeDtypeStruct((output.shape[0], *spec.image, kernel.shape[-2]), dtype)
        scatter = jax.linear_transpose(lambda image: _patches(image, spec), image)
        return scatter(patches.reshape(*output.shape[:-1], patches.shape[-1]))[0]

    return in_groups(of, (output,), patch_bytes(spec, kernel.shape[-2], output.dtype), total=False)


def _kernel(image, output, spec: ConvSpec, precision, dtype):
    def of(image, output):
        return _dot(_rows(_patches(image, spec)), _rows(output), ((0,), (0,)), precision, dtype)

    kernel = in_groups(of, (image, output), patch_bytes(spec, image.shape[-1], image.dtype), total=True)
    return kernel.reshape(*spec.window, image.shape[-1], output.shape[-1])


#: The convolution and its VJPs of one group, by the name of the array: `(first, second, spec, precision, dtype)`.
MATMULS = {"output": _output, "image": _image, "kernel": _kernel}
