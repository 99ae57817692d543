"""The matrix-product convolution against lax's, with first and second derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmaml.nn import conv_general_dilated, on_cpu, on_gpu, streaming

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
    "arrays": {
        "dimension_numbers": DIMS[2],
        "window_strides": np.array([1, 2]),
        "padding": np.array([[1, 1], [0, 1]]),
        "lhs_dilation": np.array([2, 1]),
        "rhs_dilation": np.array([2, 1]),
    },
    "batch groups": {"dimension_numbers": DIMS[2], "batch_group_count": 2},
}


@pytest.mark.parametrize("case", OTHER)
def test_layouts_groups_and_dilations(x64, quick_compiles, case):
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
    program = jax.jit(lambda x, k: conv_general_dilated(x, k, **options)).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" in program) == (case == "batch groups")


def kernel_like(x):
    return jnp.cos(x)


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
    """Whatever the form: value, slopes and second derivatives, and with a kernel for each task."""
    monkeypatch.setattr(on_cpu, "_FEWEST_PIXELS_OF_THREADS", on_cpu._FEWEST_PIXELS)
    rng = np.random.default_rng(5)
    x, kernel = rng.normal(size=(5, *size, channels[0])), rng.normal(size=(*window, *channels)) / 10

    def everything(conv, x, kernel):
        def loss(x, kernel):
            return jnp.mean(jnp.sin(conv(x, kernel, (1, 1), padding, dimension_numbers=DIMS[2])))

        slopes = jax.grad(loss, (0, 1))
        return slopes(x, kernel), jax.jvp(slopes, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]

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


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_large_images_on_a_gpu_take_its_own_convolution(monkeypatch, x64, quick_compiles, strides):
    """Here XLA's own of a CPU, by the choices for a GPU: value, slopes and second derivatives."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(on_gpu, "_FEWEST_PIXELS", 100)
    monkeypatch.setattr(on_gpu, "_FEWEST_GROUPS", 2)
    monkeypatch.setattr(on_gpu, "_FEWEST_CHANNELS", 4)
    rng = np.random.default_rng(8)
    x, kernel = rng.normal(size=(2, 5, 9, 8, 4)), rng.normal(size=(2, 3, 3, 4, 6))

    def everything(conv):
        def loss(x, kernel):
            return jnp.mean(jnp.sin(conv(x, kernel, strides, "SAME", dimension_numbers=DIMS[2])))

        slopes = jax.grad(loss, (0, 1))
        return lambda x, kernel: (
            slopes(x, kernel),
            jax.jvp(slopes, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1],
        )

    ours, theirs = everything(conv_general_dilated), everything(lax.conv_general_dilated)
    one, tasks = jax.jit(ours), jax.jit(jax.vmap(ours))
    assert "dot_general" not in one.lower(x[0], kernel[0]).as_text()
    # With a kernel for each task, only where windows would be many.
    program = tasks.lower(x, kernel).as_text()
    assert ("dot_general" in program, "feature_group_count = 2" in program) == (strides != (1, 1), strides == (1, 1))
    expected = jax.vmap(theirs)(x, kernel)
    for got in (tasks(x, kernel), jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one, x, kernel))):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_gpu_gathers_windows_of_what_is_small(monkeypatch, tasks):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = jnp.ones((tasks, 5, 14, 14, 32)), jnp.ones((tasks, 3, 3, 32, 32))
    slopes = jax.vmap(
        jax.grad(
            lambda x, k: jnp.sum(conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMS[2]) ** 2), (0, 1)
        )
    )
    program = jax.jit(slopes).lower(x, kernel).as_text()
    assert "stablehlo.convolution" not in program


@pytest.mark.parametrize(("axes", "groups"), [((0, None), 1), ((None, 1), 2), ((2, 0), 1), ((1, 3), 2)])
def test_vmap_is_a_loop(x64, quick_compiles, axes, groups):
    """Of the convolution, of both slopes and of their derivatives, whatever has an axis of tasks; and once more."""
    rng = np.random.default_rng(6)
    x, kernel, along = rng.normal(size=(2, 4, 4, 4)), rng.normal(size=(2, 2, 4 // groups, 6)), rng.normal(size=(2, 6))

    def function(x, kernel, weights):
        def loss(x, kernel):
            options = {"dimension_numbers": DIMS[2], "feature_group_count": groups}
            y = conv_general_dilated(x, kernel, (2, 1), "SAME", **options)
            return jnp.sum(jnp.square(y) * weights[None, None, None]), y

        slopes = jax.grad(loss, (0, 1), has_aux=True)
        return slopes(x, kernel), jax.jvp(lambda x, k: slopes(x, k)[0], (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]

    tasks = [a if axis is None else np.stack([a, 2 * a, -a], axis) for a, axis in zip((x, kernel), axes, strict=True)]
    both = jax.vmap(jax.vmap(function, (None, None, 0)), (*axes, None))(*tasks, along)
    for task in range(3):
        for number, weights in enumerate(along):
            one = [a if axis is None else jnp.take(a, task, axis) for a, axis in zip(tasks, axes, strict=True)]
            alone = function(*one, weights)
            for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(a[task, number], b, rtol=1e-11, atol=1e-11)


def test_sums_over_devices_where_shard_map_checks_them():
    """A kernel that all devices share gets the sum of their slopes, as lax's convolution gives it."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = (a.astype(jnp.float32) for a in arrays(2))

    def slope(conv):
        def loss(kernel, x):
            return jax.lax.psum(jnp.sum(jnp.sin(conv(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS[2]))), "data")

        split = jax.shard_map(loss, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
        return jax.jit(jax.grad(split))(kernel, x)

    np.testing.assert_allclose(slope(conv_general_dilated), slope(lax.conv_general_dilated), rtol=1e-5, atol=1e-5)


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

        num_loops = jax.jit(slopes).lower(x, kernels[0]).as_text().count("stablehlo.while")
        return num_loops, jax.vmap(slopes, (None, 0))(x, kernels)

    num_loops, whole = run()
    assert num_loops == 0
    monkeypatch.setattr(streaming, "_GROUP_BYTES", 2 * 25 * 9 * 2 * 8)
    num_loops, grouped = run()
    assert num_loops >= 3  # For the output and each slope.
    for a, b in zip(jax.tree.leaves(grouped), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_becomes_a_matrix_product_under_vmap():
    x, kernel = arrays(2)
    x, kernel = x.astype(jnp.float32), jnp.stack([kernel, 2 * kernel]).astype(jnp.float32)

    def run(kernel):
        return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS[2])

    program = jax.jit(jax.vmap(run)).lower(kernel).as_text()
    assert "stablehlo.convolution" not in program
    assert "dot_general" in program
    # A sum may cancel: its rounding is that of its terms.
    np.testing.assert_allclose(jax.vmap(run)(kernel)[1], 2 * run(kernel[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_and_accumulation(dtype):
    x, kernel = (a.astype(dtype) for a in arrays(2))
    options = {"window_strides": (2, 2), "padding": "SAME", "dimension_numbers": DIMS[2]}
    ours = conv_general_dilated(x, kernel, **options)
    assert ours.dtype == dtype
    theirs = lax.conv_general_dilated(x, kernel, **options)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (ours, theirs)), rtol=2e-2, atol=5e-2)
    wide, pull_back = jax.vjp(
        lambda x, k: conv_general_dilated(x, k, preferred_element_type=jnp.float32, **options), x, kernel
    )
    assert wide.dtype == jnp.float32
    assert [slope.dtype for slope in pull_back(wide)] == [dtype, dtype]


def test_bad_shapes_get_laxs_own_error():
    with pytest.raises((TypeError, ValueError), match="feature"):
        conv_general_dilated(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME", dimension_numbers=DIMS[2])
