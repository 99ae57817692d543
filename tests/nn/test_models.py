"""Layers and the paper's models."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax import lax

import jaxmaml
from jaxmaml.nn import MLP, BatchNorm, Conv4, batch_norm, example_groups, max_pool, normalisation


def test_batch_norm_equals_flax():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 5)) * 3 + 1
    flax_norm = linen.BatchNorm(use_running_average=False, epsilon=1e-3)
    variables = flax_norm.init(jax.random.key(1), x)
    variables["params"]["bias"] = jnp.arange(5.0)
    expected, _ = flax_norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(batch_norm(x, jnp.ones(5), jnp.arange(5.0)), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_has_a_shift_and_on_request_a_scale():
    x = jnp.ones((2, 3))
    assert set(BatchNorm().init(jax.random.key(0), x)["params"]) == {"bias"}
    assert set(BatchNorm(use_scale=True).init(jax.random.key(0), x)["params"]) == {"bias", "scale"}


def test_batch_norm_of_a_constant_has_finite_derivatives():
    x = jnp.ones((4, 2))
    curvature = jax.hessian(lambda x: jnp.sum(batch_norm(x) ** 3))(x)
    assert np.isfinite(curvature).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5, 7])
def test_max_pool_equals_lax(x64, size):
    x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3), jnp.float64)

    def reference(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    np.testing.assert_array_equal(max_pool(x), reference(x))
    gradient, expected = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))) for f in (max_pool, reference))
    np.testing.assert_array_equal(gradient(x), expected(x))
    along = jnp.cos(x)
    np.testing.assert_allclose(*(jax.jvp(s, (x,), (along,))[1] for s in (gradient, expected)), rtol=1e-12)
    np.testing.assert_allclose(*(jax.vjp(s, x)[1](along)[0] for s in (gradient, expected)), rtol=1e-12)


def test_the_gradient_of_max_pool_pads_nothing():
    """Not in any mode of differentiation: a pad for each pixel of the window is what made it slow."""
    x = jnp.ones((1, 4, 4, 2))
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x))))
    for function in (gradient, jax.grad(lambda x: jnp.vdot(gradient(x), x)), lambda x: jax.jvp(gradient, (x,), (x,))):
        assert " pad[" not in str(jax.make_jaxpr(function)(x))


def test_max_pool_hides_no_nan():
    for place in range(4):
        x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.softplus, jax.nn.elu, jax.nn.relu])
def test_max_pool_keeps_its_gradient_whatever_xla_fuses(x64, activation):
    """Compiled, jnp.max in its place loses gradients here: equality with a maximum rounded otherwise."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 1)))
    params = [jnp.asarray(rng.normal(size=shape)) for shape in ((3, 3, 1, 3), (3, 3, 3, 4))]

    def loss(params):
        y = x
        for kernel in params:
            y = jaxmaml.nn.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            y = max_pool(activation(batch_norm(y)))
        return jnp.sum(y**3)

    gradient = jax.grad(loss)
    direction = [jnp.cos(p) for p in params]
    compiled = jax.jit(lambda p: jax.jvp(gradient, (p,), (direction,)))(params)
    step = 1e-5
    shifted = [[p + sign * step * d for p, d in zip(params, direction, strict=True)] for sign in (1, -1)]
    up, down = (jax.jit(gradient)(p) for p in shifted)
    for (a, b), along in zip(zip(up, down, strict=True), compiled[1], strict=True):
        np.testing.assert_allclose(along, (a - b) / (2 * step), rtol=1e-4, atol=1e-4)


def test_mlp_starts_near_zero_as_in_the_original_code():
    params = MLP().init(jax.random.key(0), jnp.ones((1, 1)))["params"]
    assert [params[f"Dense_{i}"]["kernel"].shape for i in range(3)] == [(1, 40), (40, 40), (40, 1)]
    kernel = params["Dense_1"]["kernel"]
    assert float(jnp.abs(kernel).max()) <= 0.02
    assert 0.007 < float(kernel.std()) < 0.01  # Truncation at two deviations takes 0.01 to 0.0088.
    assert not any(params[f"Dense_{i}"]["bias"].any() for i in range(3))


def test_conv4_omniglot(quick_compiles):
    params = jax.jit(Conv4.omniglot(5).init)(jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    # 3x3 convolutions 1-64-64-64-64 with biases, a shift for each normalisation, a 64-5 head.
    assert count == (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 64 + (64 * 5 + 5)
    assert 0.8 < float(params["Dense_0"]["kernel"].std()) < 1.2
    limit = np.sqrt(6 / (9 * 64 + 9 * 64))
    assert 0.95 * limit < float(jnp.abs(params["Conv_1"]["kernel"]).max()) <= limit


def test_conv4_mini_imagenet():
    model, images = Conv4.mini_imagenet(5), jnp.ones((3, 84, 84, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images[:1])
    assert params["params"]["Dense_0"]["kernel"].shape == (5 * 5 * 32, 5)
    assert jax.eval_shape(model.apply, params, images).shape == (3, 5)


def test_conv4_spatial_sizes_are_the_papers():
    """28 -> 14 -> 7 -> 4 -> 2 by strides, 84 -> 42 -> 21 -> 10 -> 5 by pooling."""

    def convolved(key, x):
        _, seen = Conv4.omniglot(5).init_with_output(key, x, capture_intermediates=True)
        return [seen["intermediates"][f"Conv_{i}"]["__call__"][0] for i in range(4)]

    sizes = [x.shape[1] for x in jax.eval_shape(convolved, jax.random.key(0), jnp.ones((1, 28, 28, 1)))]
    assert sizes == [14, 7, 4, 2]


def test_streamed_normalisation_is_batch_norm(x64, quick_compiles, monkeypatch):
    """`BatchNorm()(x, layer, max_pool)` in groups of examples: values, first and second derivatives."""
    rng = np.random.default_rng(5)
    x, w = jnp.asarray(rng.normal(size=(6, 4, 4, 2))), jnp.asarray(rng.normal(size=(2, 3)))
    norm = jaxmaml.nn.BatchNorm()
    variables = {"params": {"bias": jnp.array([0.1, -0.2, 0.3])}}

    def streamed(w):
        return norm.apply(variables, x, lambda x: x @ w, jaxmaml.nn.max_pool)

    def plain(w):
        return jaxmaml.nn.max_pool(jaxmaml.nn.batch_norm(x @ w, None, variables["params"]["bias"]))

    def all_of(function):
        gradient = jax.grad(lambda w: jnp.sum(jnp.sin(function(w))))
        return jax.jit(lambda w: (function(w), *jax.jvp(gradient, (w,), (jnp.cos(w),))))(w)

    expected = all_of(plain)
    for size in (1, 2, 3, 6):
        in_groups_of(size, monkeypatch)
        for a, b in zip(all_of(streamed), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def in_groups_of(size, monkeypatch):
    for module in (example_groups, normalisation):
        monkeypatch.setattr(module, "group_size", lambda num_examples, bytes_per_example: min(size, num_examples))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_context": 3}], ids=["plain", "film"])
def test_streamed_blocks_are_the_model(x64, quick_compiles, monkeypatch, options):
    """Each block normalises what the block before it left, in its own groups: values, first and second derivatives."""
    model = Conv4.mini_imagenet(num_ways=3, features=2, **options)
    images = jnp.asarray(np.random.default_rng(6).normal(size=(4, 16, 16, 1)))
    params = jax.jit(model.init)(jax.random.key(0), images)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)

    def all_of():
        gradient = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, images))))
        return model.apply(params, images), *jax.jvp(gradient, (params,), (jax.tree.map(jnp.cos, params),))

    in_groups_of(4, monkeypatch)
    expected = jax.tree.leaves(jax.jit(all_of)())
    in_groups_of(2, monkeypatch)
    ours = jax.tree.leaves(jax.jit(lambda: all_of())())
    assert sum(float(jnp.abs(leaf).max()) > 1e-3 for leaf in ours) > len(ours) / 2
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_activations_of_large_batches_are_held_once():
    """Of a block's outputs for all examples there is what was pooled, not its normalised form too."""
    model = Conv4.mini_imagenet(num_ways=5)
    images = jax.ShapeDtypeStruct((10, 84, 84, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    loss = lambda params, images: jnp.sum(model.apply(params, images))  # noqa: E731
    memory = jax.jit(jax.grad(loss)).lower(params, images).compile().memory_analysis().temp_size_in_bytes
    one = 10 * 42 * 42 * 32 * 4
    assert memory < 4 * one + example_groups._GROUP_BYTES


IMAGES = np.random.default_rng(0).uniform(size=(6, 28, 28, 1)).astype(np.float32)


def conv4(**options):
    model = jaxmaml.nn.Conv4.omniglot(num_ways=3, features=8, **options)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES)


def predictions(model, params, images, **options):
    return np.asarray(jax.jit(lambda p, x: model.apply(p, x, **options))(params, images))


def test_whose_statistics(quick_compiles):
    """A prediction depends on the other examples of its batch only where it is said to."""

    def alone(model, params, **options):
        together = predictions(model, params, IMAGES, **options)
        return np.abs(together[:1] - predictions(model, params, IMAGES[:1], **options)).max()

    model, params = conv4()
    assert alone(model, params) > 0.01
    assert alone(model, params, support=IMAGES[2:4]) < 1e-5
    for kind in ("layer", "group"):
        assert alone(*conv4(normalisation=kind)) < 1e-5
    own, averages = jax.jit(lambda p, x: model.apply(p, x, mutable=["batch_stats"]))(params, IMAGES)
    np.testing.assert_allclose(own, predictions(model, params, IMAGES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predictions(model, {**params, **averages}, IMAGES), own, rtol=1e-4, atol=1e-5)
    assert alone(model, {**params, **averages}) < 1e-5
    with pytest.raises(ValueError, match="`normalisation` must be one of"):
        conv4(normalisation="instance")


@pytest.mark.slow
def test_support_statistics_are_those_of_the_support(quick_compiles):
    model, params = conv4()
    support = IMAGES[:4]
    transductive = predictions(model, params, support)
    np.testing.assert_allclose(predictions(model, params, support, support=support), transductive, atol=2e-5)
    apply = jaxmaml.nn.inductive(model.apply)
    np.testing.assert_array_equal(apply(params, (IMAGES, support)), model.apply(params, IMAGES, support=support))
    np.testing.assert_array_equal(apply(params, support), model.apply(params, support))


def test_a_task_with_its_support():
    sample = jaxmaml.tasks.with_support(
        jaxmaml.tasks.image_episodes(np.zeros((5, 4, 8, 8, 1), np.uint8), num_ways=3, num_shots=1, num_queries=2)
    )
    task = jax.jit(sample)(jax.random.key(0))
    assert [x.shape for x in task.query.inputs] == [(6, 8, 8, 1), (3, 8, 8, 1)]
    assert jax.tree.leaves(sample)  # Its images are passed to a compiled function, and not compiled in.
    with pytest.raises(TypeError, match=r"must be \(inputs, targets\)"):
        jaxmaml.tasks.with_support(lambda key: jaxmaml.Task(jnp.ones(2), jnp.ones(2)))(jax.random.key(0))


@pytest.mark.slow
def test_average_statistics_are_those_of_all_queries(quick_compiles):
    """Where nothing adapts, the first block's are the moments of all tasks' queries as one batch."""
    model, params = conv4()
    images = np.random.default_rng(0).integers(0, 255, (6, 5, 28, 28, 1), np.uint8)
    sample = jaxmaml.tasks.image_episodes(images, num_ways=3, num_shots=1, num_queries=2)
    learner = jaxmaml.maml(jaxmaml.cross_entropy(model.apply), optax.sgd(0.0), optax.adam(1e-3), num_inner_steps=1)
    key = jax.random.key(3)
    average = functools.partial(jaxmaml.nn.average_statistics, model.apply, num_tasks=4)
    statistics = average(learner, learner.init(params), sample, key)
    queries = jnp.concatenate([sample(k).query.inputs for k in jax.random.split(key, 4)])
    _, written = model.apply(params, queries, mutable=["batch_stats"])
    expected = written["batch_stats"]["BatchNorm_0"]
    chex.assert_trees_all_close(statistics["batch_stats"]["BatchNorm_0"], expected, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(statistics["batch_stats"]) == jax.tree.structure(written["batch_stats"])
    mlp = jaxmaml.nn.MLP()
    plain = jaxmaml.maml(jaxmaml.mean_squared_error(mlp.apply), optax.sgd(0.0), optax.adam(1e-3), num_inner_steps=1)
    with pytest.raises(ValueError, match='must write to "batch_stats"'):
        jaxmaml.nn.average_statistics(
            mlp.apply, plain, plain.init(mlp.init(key, jnp.ones((1, 1)))), jaxmaml.tasks.sinusoid(), key
        )


def test_extra_parts_change_nothing_at_first(quick_compiles):
    plain, params = conv4()
    expected = predictions(plain, params, IMAGES)
    for options, names in (
        ({"warp": True}, {f"warp_{i}" for i in range(4)}),
        ({"num_context": 5}, {"context", "film"}),
        ({"use_scale": True}, set()),
    ):
        model, extended = conv4(**options)
        assert set(extended["params"]) - set(params["params"]) == names
        old = {
            name: {**layer, **params["params"].get(name, {})} if isinstance(layer, dict) else layer
            for name, layer in extended["params"].items()
        }
        np.testing.assert_allclose(predictions(model, {"params": old}, IMAGES), expected, rtol=1e-4, atol=1e-5)
    features = predictions(plain, params, IMAGES, head=False)
    head = params["params"]["Dense_0"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], expected, rtol=1e-4, atol=1e-5)


def test_mlp_with_another_activation():
    x = jnp.linspace(-1, 1, 3)[:, None]
    model = jaxmaml.nn.MLP((5, 1), activation=jnp.tanh)
    params = model.init(jax.random.key(0), x)
    first, last = (params["params"][f"Dense_{layer}"] for layer in range(2))
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"][None])
    expected = hidden @ last["kernel"] + last["bias"][None]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-6)
    with pytest.raises(TypeError, match="`activation` must be callable, got str"):
        jaxmaml.nn.MLP(activation="tanh").init(jax.random.key(0), x)


def test_mlp_with_context_and_warp():
    x = jnp.ones((3, 1))
    model = jaxmaml.nn.MLP(num_context=4, warp=True)
    params = model.init(jax.random.key(0), x)["params"]
    assert params["context"].shape == (4,)
    assert params["Dense_0"]["kernel"].shape == (5, 40)
    np.testing.assert_array_equal(params["warp_1"]["kernel"], np.eye(40))


@pytest.mark.slow
def test_biases_that_the_mean_cancels_are_not_added(x64, quick_compiles):
    """The path that writes its statistics adds them; both give the same predictions."""
    model = Conv4.mini_imagenet(num_ways=3, features=2)
    images = jnp.asarray(np.random.default_rng(7).normal(size=(4, 16, 16, 1)))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    moved = {name: {**leaves, "bias": leaves["bias"] + 3.0} for name, leaves in params.items() if "Conv" in name}
    params = {"params": {**params, **moved}}
    added, statistics = model.apply(params, images, mutable=["batch_stats"])
    np.testing.assert_allclose(model.apply(params, images), added, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(model.apply({**params, **statistics}, images), added, rtol=1e-10, atol=1e-11)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, images)))))(params)["params"]
    assert all(not gradient[name]["bias"].any() and gradient[name]["kernel"].any() for name in moved)
