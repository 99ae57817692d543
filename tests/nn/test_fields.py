"""Neural fields: their initialisation, their kernels, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from jaxmaml.nn import FourierFeatureMLP, Siren
from jaxmaml.nn.sine import sine
from tests import problems

POINTS = jax.random.uniform(jax.random.key(0), (4096, 2), minval=-1.0)


def test_weights_are_drawn_as_in_the_paper():
    params = Siren((128, 128, 3), w0=20.0).init(jax.random.key(0), POINTS[:1])["params"]
    for name, bound in (("Dense_0", 1 / 2), ("Dense_1", np.sqrt(6 / 128) / 20), ("Dense_2", np.sqrt(6 / 128) / 20)):
        kernel = np.asarray(params[name]["kernel"])
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, bound / np.sqrt(3)], atol=0.08 * bound)
        assert not params[name]["bias"].any()


def test_activations_keep_their_distribution_at_any_depth():
    """Arguments of sines are normal, of variance 1 and then v' = 1 - e^(-2 v), with the fixed point 0.797."""
    width, w0 = 1024, 30.0
    model = Siren((width,) * 8 + (1,), w0=w0)
    params = model.init(jax.random.key(1), POINTS[:1])
    _, seen = model.apply(params, POINTS[:512], capture_intermediates=True)
    layers = [w0 * np.asarray(seen["intermediates"][f"Dense_{i}"]["__call__"][0], np.float64) for i in range(8)]
    # The first sine's argument has many periods: the arcsine distribution.
    levels = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(np.quantile(np.sin(layers[0]), levels), -np.cos(np.pi * levels), atol=0.06)
    variance = 1.0
    for arguments in layers[1:]:
        np.testing.assert_allclose(arguments.mean(), 0.0, atol=0.05)
        np.testing.assert_allclose(arguments.var(), variance, rtol=0.06)
        np.testing.assert_allclose(np.mean(arguments**4) / arguments.var() ** 2, 3.0, atol=0.3)
        variance = 1 - np.exp(-2 * variance)
        np.testing.assert_allclose(np.mean(np.sin(arguments) ** 2), variance / 2, rtol=0.06)
    np.testing.assert_allclose(variance, 0.797, atol=0.001)


def test_outputs_begin_around_the_shift():
    for shift in (0.5, 0.0):
        model = Siren((256, 256, 3), shift=shift)
        out = model.apply(model.init(jax.random.key(2), POINTS[:1]), POINTS)
        np.testing.assert_allclose(out.mean(), shift, atol=0.02)


def siren_by_hand(params, x, w0):
    layers = params["params"]
    context = layers.get("context")
    for i in range(2):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"][None]
        if context is not None:
            x = x + (context @ layers[f"modulation_{i}"]["kernel"])[None]
        x = jnp.sin(w0 * x)
    return x @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"][None] + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("num_context", [0, 5])
def test_meta_gradients_of_a_siren_are_the_plain_ones(num_context, quick_compiles):
    """Second derivatives included, over a batch of tasks, and with the fast sine."""
    model = Siren((16, 16, 3), w0=10.0, num_context=num_context)
    params = model.init(jax.random.key(3), POINTS[:1])
    params = jax.tree.map(lambda p: p + 0.01 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    by_hand = jaxmaml.mean_squared_error(lambda params, x: siren_by_hand(params, x, 10.0))
    tasks = jax.vmap(jaxmaml.tasks.fields.phantoms(8, channels=3))(jax.random.split(jax.random.key(4), 3))
    learner = problems.maml(jaxmaml.mean_squared_error(model.apply), optax.sgd(0.02), 2)
    with jax.disable_jit():
        np.testing.assert_allclose(model.apply(params, POINTS[:9]), siren_by_hand(params, POINTS[:9], 10.0), atol=1e-5)
    ours = problems.meta_gradient(learner, params, tasks)
    plain = problems.plain_gradient(by_hand, optax.sgd(0.02), 2, params, tasks)
    np.testing.assert_allclose(ours, plain, rtol=2e-3, atol=2e-4 * np.abs(plain).max())


def test_the_sine_and_its_derivatives():
    """Against float64; at the bounds of the promised range too."""
    x = np.concatenate([np.linspace(-20, 20, 20_001), np.linspace(-1e4, 1e4, 100_001)]).astype(np.float32)
    exact = x.astype(np.float64)
    along = jax.jit(jax.vmap(jax.grad(lambda x: sine(x))))
    again = jax.jit(jax.vmap(jax.grad(jax.grad(lambda x: sine(x)))))
    np.testing.assert_allclose(jax.jit(sine)(x), np.sin(exact), atol=5e-7)
    np.testing.assert_allclose(along(x), np.cos(exact), atol=5e-7)
    np.testing.assert_allclose(again(x), -np.sin(exact), atol=5e-7)


def test_the_sine_of_what_is_no_number_is_none():
    assert not jnp.isfinite(sine(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))).any()


def test_other_precisions_and_the_switch_have_the_plain_sine(x64, monkeypatch):
    x = jnp.linspace(-5, 5, 101)
    assert x.dtype == jnp.float64
    np.testing.assert_array_equal(sine(x), jnp.sin(x))
    assert sine(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    monkeypatch.setenv("JAXMAML_REWRITE", "0")
    np.testing.assert_array_equal(sine(x.astype(jnp.float32)), jnp.sin(x.astype(jnp.float32)))


def test_the_default_derivative_trusts_the_sine(recwarn):
    """Otherwise mixed mode would fall back to reverse mode, with a warning."""
    model = Siren((8, 1))
    learner = problems.maml(jaxmaml.reconstruction(model.apply))
    tasks = jax.vmap(jaxmaml.tasks.fields.phantoms(4))(jax.random.split(jax.random.key(0), 2))
    jax.eval_shape(learner.update, learner.init(model.init(jax.random.key(0), POINTS[:1])), tasks)
    assert not [w for w in recwarn if "derivative" in str(w.message)]


def test_fourier_features_have_a_gaussian_kernel():
    """Inner products of features are near exp(-2 pi^2 scale^2 |v - v'|^2)."""
    scale, number = 0.7, 20_000
    model = FourierFeatureMLP((4, 1), num_frequencies=number, scale=scale)
    # The identity shows the features: the weights of the first layer are a few of its rows.
    points = POINTS[:20]
    seen = jax.make_jaxpr(lambda p, x: model.apply(p, x))(model.init(jax.random.key(0), points), points)
    assert seen.out_avals[0].shape == (20, 1)
    params = model.init(jax.random.key(0), points)
    features = jax.vmap(lambda row: features_of(model, params, row), in_axes=0)(points)
    gram = features @ features.T / number
    distances = jnp.sum(jnp.square(points[:, None] - points[None]), -1)
    np.testing.assert_allclose(gram, jnp.exp(-2 * jnp.pi**2 * scale**2 * distances), atol=5 / np.sqrt(number))


def features_of(model, params, point):
    """The features of a point, as the derivative of the first layer's output by its weights."""

    def first(kernel):
        layers = {**params["params"], "Dense_0": {**params["params"]["Dense_0"], "kernel": kernel}}
        _, seen = model.apply({"params": layers}, point[None], capture_intermediates=True)
        return seen["intermediates"]["Dense_0"]["__call__"][0][0, 0]

    return jax.grad(first)(params["params"]["Dense_0"]["kernel"])[:, 0]


def test_the_frequencies_are_of_the_seed_and_no_parameters():
    model = FourierFeatureMLP((4, 1), num_frequencies=8)
    params = model.init(jax.random.key(0), POINTS[:1])
    assert jax.tree.map(jnp.shape, params["params"]) == {
        "Dense_0": {"kernel": (16, 4), "bias": (4,)},
        "Dense_1": {"kernel": (4, 1), "bias": (1,)},
    }
    out = model.apply(params, POINTS[:50])
    np.testing.assert_array_equal(out, FourierFeatureMLP((4, 1), num_frequencies=8).apply(params, POINTS[:50]))
    assert not np.allclose(out, FourierFeatureMLP((4, 1), num_frequencies=8, seed=1).apply(params, POINTS[:50]))
    logits = FourierFeatureMLP((4, 1), num_frequencies=8, sigmoid=False).apply(params, POINTS[:50])
    np.testing.assert_allclose(jax.nn.sigmoid(logits), out, rtol=1e-5)


@pytest.mark.slow
def test_functa_adapts_the_context_alone(quick_compiles):
    """CAVIA with learned rates: the shared parameters stay, and the context moves from zero."""
    model = Siren((32, 32, 1), w0=10.0, num_context=16)
    learner = jaxmaml.cavia(
        jaxmaml.reconstruction(model.apply),
        jaxmaml.rules.learned_rates((0.005, 0.1)),
        optax.adam(1e-3),
        num_inner_steps=3,
        context="context",
    )
    state = learner.init(model.init(jax.random.key(0), POINTS[:1]))
    sample = jaxmaml.tasks.fields.phantoms(8)
    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(1), 4))
    after, info = jax.jit(learner.update)(state, tasks)
    assert info.aux["psnr"].shape == (4,)
    moved, _ = learner.adapt(after, sample(jax.random.key(2)).support)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), moved["params"], after.params["params"])
    assert not same.pop("context")
    assert all(jax.tree.leaves(same))
    learned = jax.tree.map(lambda a, b: bool((a != b).any()), after.params["params"], state.params["params"])
    assert all(jax.tree.leaves({name: leaf for name, leaf in learned.items() if name != "context"}))


@pytest.mark.parametrize("model", [Siren(w0=0.0), Siren(features=()), FourierFeatureMLP(scale=-1.0)])
def test_bad_models_are_refused(model):
    with pytest.raises(ValueError, match=r"`(w0|features|scale)` must"):
        model.init(jax.random.key(0), POINTS[:1])
