"""The matrix-product convolution against lax's, with first and second derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmaml.nn import conv_general_dilated, streaming

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
    "channels first in, last out": {"dimension_numbers": ("NCHW", "HWIO", "NHWC")},
    "odd order": {"dimension_numbers": ("HNCW", "OHIW", "WCNH")},
    "groups": {"dimension_numbers": DIMS[2], "feature_group_count": 2},
    "depthwise": {"dimension_numbers": DIMS[2], "feature_group_count": 4},
    "input dilation": {"dimension_numbers": DIMS[2], "lhs_dilation": (2, 1), "padding": [(1, 2), (0, 1)]},
    "all at once": {
        "dimension_numbers": ("NCHW", "OIHW", "NCHW"),
        "feature_group_count": 2,
        "lhs_dilation": (1, 3),
        "rhs_dilation": (2, 1),
        "window_strides": (1, 2),
        "padding": [(5, -1), (2, 4)],
    },
    "batch groups": {"dimension_numbers": DIMS[2], "batch_group_count": 2},
}


@pytest.mark.parametrize("case", OTHER)
def test_layouts_groups_and_dilations(x64, case):
    rng = np.random.default_rng(1)
    options = {"window_strides": (1, 1), "padding": "SAME", **OTHER[case]}
    shape = [4, 4, 4, 4]
    groups = options.get("feature_group_count", 1)
    shape[options["dimension_numbers"][1].index("I")] //= groups
    x, kernel = jnp.asarray(rng.normal(size=(4, 4, 4, 4))), jnp.asarray(rng.normal(size=shape))

    def value_and_slopes(conv):
        def run(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel, **options)))

        slopes = jax.grad(run, (0, 1))
        return conv(x, kernel, **options), slopes(x, kernel), jax.jvp(slopes, (x, kernel), (kernel_like(x), kernel))[1]

    ours, theirs = value_and_slopes(conv_general_dilated), value_and_slopes(lax.conv_general_dilated)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    jaxpr = str(jax.make_jaxpr(lambda x, k: conv_general_dilated(x, k, **options))(x, kernel))
    assert ("conv_general_dilated" in jaxpr) == (case == "batch groups")


def kernel_like(x):
    return jnp.cos(x)


def test_lowering_can_be_chosen():
    x, kernel = arrays(2)
    program = jax.make_jaxpr(
        lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMS[2], lowering="lax")
    )(x, kernel)
    assert "conv_general_dilated" in str(program)
    with pytest.raises(ValueError, match="`lowering` must be one of 'auto', 'matmul', 'lax'"):
        conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS[2], lowering="fft")


def test_groups_of_examples_change_nothing(x64, monkeypatch):
    """Windows are gathered for as many examples as fit; and their derivatives, under vmap over kernels."""
    rng = np.random.default_rng(4)
    x, kernels = jnp.asarray(rng.normal(size=(6, 5, 5, 2))), jnp.asarray(rng.normal(size=(2, 3, 3, 2, 3)))

    def run():
        def loss(x, kernel):
            y = conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS[2])
            return jnp.sum(jnp.sin(y))

        def slopes(x, kernel):
            return jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), (jnp.cos(x), jnp.sin(kernel)))

        assert_scans = "scan" in str(jax.make_jaxpr(slopes)(x, kernels[0]))
        return assert_scans, jax.vmap(slopes, (None, 0))(x, kernels)

    scans, whole = run()
    assert not scans
    monkeypatch.setattr(streaming, "_GROUP_BYTES", 2 * 25 * 9 * 2 * 8)
    scans, grouped = run()
    assert scans
    for a, b in zip(jax.tree.leaves(grouped), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


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
