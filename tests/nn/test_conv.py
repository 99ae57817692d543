"""The matrix-product convolution against lax's, with first and second derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmaml.nn import conv_general_dilated

DIMS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def arrays(ndim, seed=0, channels=(2, 3)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *(7, 6, 5)[:ndim], channels[0]))
    kernel = rng.normal(size=(*(3, 2, 2)[:ndim], *channels))
    return jnp.asarray(x), jnp.asarray(kernel)


CASES = [
    (ndim, stride, padding, dilation)
    for ndim, stride, padding, dilation in itertools.product((1, 2, 3), (1, 2), ("SAME", "VALID", "given"), (1, 2))
    if ndim == 2 or (stride, dilation) != (2, 2)
]


@pytest.mark.parametrize(("ndim", "stride", "padding", "dilation"), CASES)
def test_equals_lax(x64, ndim, stride, padding, dilation):
    x, kernel = arrays(ndim)
    options = {
        "window_strides": (stride,) * ndim,
        "padding": [(2, 1), (0, 3), (1, 1)][:ndim] if padding == "given" else padding,
        "rhs_dilation": (dilation,) * ndim,
        "dimension_numbers": DIMS[ndim],
    }

    def everything(conv):
        def run(x, kernel):
            return conv(x, kernel, **options)

        value, pull_back = jax.vjp(run, x, kernel)
        return value, pull_back(jnp.cos(value)), run

    ours, our_grads, our_run = everything(conv_general_dilated)
    theirs, their_grads, their_run = everything(lax.conv_general_dilated)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    for a, b in zip(our_grads, their_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    if ndim == 2 and dilation == 1:

        def curvature(run):
            slope = jax.grad(lambda x, k: jnp.sum(jnp.sin(run(x, k))), argnums=(0, 1))
            return jax.jvp(slope, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]

        for a, b in zip(curvature(our_run), curvature(their_run), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_negative_padding(x64):
    x, kernel = arrays(2)
    options = {"window_strides": (1, 1), "padding": [(-1, 2), (0, -1)], "dimension_numbers": DIMS[2]}
    np.testing.assert_allclose(
        conv_general_dilated(x, kernel, **options), lax.conv_general_dilated(x, kernel, **options), rtol=1e-10
    )


OTHER = {
    "channels first": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    "groups": {"dimension_numbers": DIMS[2], "feature_group_count": 2},
    "input dilation": {"dimension_numbers": DIMS[2], "lhs_dilation": (2, 1), "padding": [(1, 2), (0, 1)]},
}


@pytest.mark.parametrize("case", OTHER)
def test_what_it_leaves_to_lax(x64, case):
    rng = np.random.default_rng(1)
    x, kernel = jnp.asarray(rng.normal(size=(2, 4, 4, 4))), jnp.asarray(rng.normal(size=(4, 4, 4, 4)))
    if case == "groups":
        kernel = kernel[:, :, :2]
    options = {"window_strides": (1, 1), "padding": "SAME", **OTHER[case]}
    np.testing.assert_allclose(
        conv_general_dilated(x, kernel, **options), lax.conv_general_dilated(x, kernel, **options), rtol=1e-12
    )
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x, k: conv_general_dilated(x, k, **options))(x, kernel))


def test_becomes_a_matrix_product_under_vmap():
    x, kernel = arrays(2)
    x, kernel = x.astype(jnp.float32), jnp.stack([kernel, 2 * kernel]).astype(jnp.float32)

    def run(kernel):
        return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS[2])

    jaxpr = str(jax.make_jaxpr(jax.vmap(run))(kernel))
    assert "conv_general_dilated" not in jaxpr
    assert "dot_general" in jaxpr
    np.testing.assert_allclose(jax.vmap(run)(kernel)[1], 2 * run(kernel[0]), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_and_accumulation(dtype):
    x, kernel = (a.astype(dtype) for a in arrays(2))
    options = {"window_strides": (2, 2), "padding": "SAME", "dimension_numbers": DIMS[2]}
    ours = conv_general_dilated(x, kernel, **options)
    assert ours.dtype == dtype
    theirs = lax.conv_general_dilated(x, kernel, **options)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (ours, theirs)), rtol=2e-2, atol=5e-2)
    wide = conv_general_dilated(x, kernel, preferred_element_type=jnp.float32, **options)
    assert wide.dtype == jnp.float32


def test_bad_shapes_get_laxs_own_error():
    with pytest.raises((TypeError, ValueError), match="feature"):
        conv_general_dilated(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME", dimension_numbers=DIMS[2])
