"""The convolution by matmuls against lax's, with first and second derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmaml.nn import conv_general_dilated
from jaxmaml.nn.conv import cpu
from jaxmaml.nn.conv.spec import Sizes

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


@pytest.mark.slow
@pytest.mark.parametrize(("ndim", "stride", "padding", "dilation"), CASES)
def test_equals_lax(x64, quick_compiles, ndim, stride, padding, dilation):
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
            gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(run(x, k))), argnums=(0, 1))
            return jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]

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
    "arrays": {
        "dimension_numbers": DIMS[2],
        "window_strides": np.array([1, 2]),
        "padding": np.array([[1, 1], [0, 1]]),
        "lhs_dilation": np.array([2, 1]),
        "rhs_dilation": np.array([2, 1]),
    },
    "batch groups": {"dimension_numbers": DIMS[2], "batch_group_count": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER)
def test_layouts_groups_and_dilations(x64, quick_compiles, case):
    rng = np.random.default_rng(1)
    options = {"window_strides": (1, 1), "padding": "SAME", **OTHER[case]}
    shape = [4, 4, 4, 4]
    groups = options.get("feature_group_count", 1)
    shape[options["dimension_numbers"][1].index("I")] //= groups
    x, kernel = jnp.asarray(rng.normal(size=(4, 4, 4, 4))), jnp.asarray(rng.normal(size=shape))

    def value_and_gradients(conv):
        def run(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel, **options)))

        gradients = jax.grad(run, (0, 1))
        second = jax.jvp(gradients, (x, kernel), (kernel_like(x), kernel))[1]
        return conv(x, kernel, **options), gradients(x, kernel), second

    ours, theirs = value_and_gradients(conv_general_dilated), value_and_gradients(lax.conv_general_dilated)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    program = jax.jit(lambda x, k: conv_general_dilated(x, k, **options)).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" in program) == (case == "batch groups")


def kernel_like(x):
    return jnp.cos(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "size", "window", "padding"),
    [
        ((32, 40), (21, 20), (3, 3), "SAME"),
        ((33, 32), (24, 22), (5, 2), [(4, 1), (0, 1)]),
        ((3, 33), (22, 21), (3, 3), "VALID"),  # Columns of the window gathered as channels; an odd width.
        ((2, 40), (21, 20), (3, 3), "SAME"),  # Two pixels side by side.
    ],
)
def test_large_images_on_a_cpu_take_its_own_convolution(monkeypatch, quick_compiles, channels, size, window, padding):
    """Whatever the form: value, gradients and second derivatives, and with a kernel for each task."""
    monkeypatch.setattr(cpu, "gains", lambda out, sizes, one_thread: True)
    rng = np.random.default_rng(5)
    x, kernel = rng.normal(size=(5, *size, channels[0])), rng.normal(size=(*window, *channels)) / 10

    def everything(conv, x, kernel):
        def loss(x, kernel):
            return jnp.mean(jnp.sin(conv(x, kernel, (1, 1), padding, dimension_numbers=DIMS[2])))

        gradients = jax.grad(loss, (0, 1))
        return gradients(x, kernel), jax.jvp(gradients, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]

    ours = jax.jit(lambda x, kernel: everything(conv_general_dilated, x, kernel))
    narrow = [a.astype(np.float32) for a in (x, kernel)]
    program = ours.lower(*narrow).as_text()
    assert "stablehlo.convolution" in program
    assert "dot_general" not in program
    with jax.enable_x64(True):
        theirs = jax.tree.map(np.asarray, everything(lax.conv_general_dilated, x, kernel))
    tasks = [np.stack([a, a / 2]) for a in narrow]
    for got in (ours(*narrow), jax.tree.map(lambda leaf: leaf[0], jax.jit(jax.vmap(ours))(*tasks))):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("tasks", [1, 2])
def test_other_devices_gather_windows(monkeypatch, tasks):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = jnp.ones((tasks, 5, 42, 42, 32)), jnp.ones((tasks, 3, 3, 32, 32))
    gradients = jax.vmap(
        jax.grad(
            lambda x, k: jnp.sum(conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMS[2]) ** 2), (0, 1)
        )
    )
    program = jax.jit(gradients).lower(x, kernel).as_text()
    assert "stablehlo.convolution" not in program


@pytest.mark.parametrize(
    ("out", "groups", "channels", "filters", "pixels", "one_thread", "is_own"),
    [
        ("output", 1, 3, 32, 35280, True, True),
        ("output", 1, 3, 32, 100, True, False),  # few pixels
        ("output", 4, 3, 8, 35280, True, False),  # groups of features
        ("image", 4, 3, 32, 35280, True, False),  # the gradient of a thin image
        ("kernel", 4, 256, 256, 400, True, True),
        ("kernel", 1, 3, 32, 35280, False, False),  # a thread for each core
        ("output", 4, 32, 32, 8820, False, False),
    ],
)
def test_which_convolutions_are_xlas_own(out, groups, channels, filters, pixels, one_thread, is_own):
    assert cpu.gains(out, Sizes(groups, channels, filters, pixels), one_thread) == is_own
