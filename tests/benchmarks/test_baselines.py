"""The benchmark's baselines compute what jaxmaml computes: loss and meta-gradient, in float64."""

import functools
import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml
from benchmarks.speed.models import ResNet12, Transformer

pytestmark = [pytest.mark.slow, pytest.mark.peers]

NUM_TASKS, NUM_WAYS = 2, 3
STEP_SIZE = 0.1
# The package that each baseline times, and why it may be missing: none is among this project's test requirements.
PACKAGES = {
    "torch_func": ("torch",),
    "autograd_loop": ("torch",),
    "higher_loop": ("torch", "higher"),
    "torchopt_loop": ("torch", "torchopt"),
    "learn2learn_loop": ("torch", "learn2learn"),
}
# Sides that are odd at some depth, so that `SAME` pads some layers evenly and others not.
MODELS = {
    "mlp": (jaxmaml.nn.MLP(), (1,)),
    "mlp-128-tanh": (jaxmaml.nn.MLP(activation=jnp.tanh), (1,)),
    "conv4-omniglot": (jaxmaml.nn.Conv4.omniglot(NUM_WAYS, features=5), (28, 25, 1)),
    "conv4-mini": (jaxmaml.nn.Conv4.mini_imagenet(NUM_WAYS, features=5), (34, 36, 3)),
    "resnet12": (ResNet12(NUM_WAYS, widths=(3, 4, 5, 6)), (16, 18, 3)),
    "transformer": (Transformer(NUM_WAYS, width=16, mlp=24, vocabulary=7), (6,)),
}


def import_baseline(name):
    for package in PACKAGES[name]:
        # Looked for, not imported: the baseline's module knows how to import it.
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}; see benchmarks/baselines/README.md")
    return importlib.import_module(f"benchmarks.baselines.{name}").BASELINE


def make_problem(name):
    """Model, parameters all different from zero, and tasks."""
    model, shape = MODELS[name]
    rng = np.random.default_rng(0)

    def batch():
        labels = np.tile(np.arange(NUM_WAYS), (NUM_TASKS, 2))
        size = (*labels.shape, *shape)
        if name.startswith("mlp"):
            return rng.normal(size=size), rng.normal(size=size)
        return (rng.integers(7, size=size) if name == "transformer" else rng.normal(size=size)), labels

    tasks = jaxmaml.Task(batch(), batch())
    params = model.init(jax.random.key(0), tasks.support[0][0])
    params = jax.tree.map(lambda p: p.astype(float) + 0.1 * rng.normal(size=p.shape), params)
    return model, jax.tree.map(np.asarray, params), tasks


@functools.cache
def jax_value_and_grad(name, num_inner_steps):
    """The definition, in plain JAX; compiled once for all baselines."""
    model, params, tasks = make_problem(name)
    make_loss = jaxmaml.mean_squared_error if name.startswith("mlp") else jaxmaml.cross_entropy
    loss_fn = make_loss(model.apply)

    def loss(params, batch):
        value = loss_fn(params, batch)
        return value if name.startswith("mlp") else value[0]

    def query_loss(params, task):
        for _ in range(num_inner_steps):
            grads = jax.grad(loss)(params, task.support)
            params = jax.tree.map(lambda p, g: p - STEP_SIZE * g, params, grads)
        return loss(params, task.query)

    def meta_loss(params):
        return jnp.mean(jax.vmap(query_loss, in_axes=(None, 0))(params, tasks))

    return jax.jit(jax.value_and_grad(meta_loss))(params)


@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("baseline", PACKAGES)
def test_baseline_agrees(x64, baseline, name, num_inner_steps):
    baseline = import_baseline(baseline)
    _, params, tasks = make_problem(name)
    step = baseline.make_step(name, params, tasks, num_inner_steps=num_inner_steps, step_size=STEP_SIZE)
    step()  # a second call must not see anything of the first
    loss, grads = baseline.as_numpy(name, *step())
    expected_loss, expected = jax_value_and_grad(name, num_inner_steps)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-9)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=0, atol=1e-9 * scale), grads, expected)


def test_compiled_baseline_agrees_with_what_it_is_compared_by(x64):
    import_baseline("torch_func")
    baseline = importlib.import_module("benchmarks.baselines.torch_func_compiled").BASELINE
    _, params, tasks = make_problem("mlp")
    options = {"num_inner_steps": 1, "step_size": STEP_SIZE}
    (loss, grads), (exact_loss, exact) = (
        each.as_numpy("mlp", *each.make_step("mlp", params, tasks, **options)()) for each in (baseline, baseline.exact)
    )
    np.testing.assert_allclose(loss, exact_loss, rtol=1e-12)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=1e-12), grads, exact)


@pytest.mark.parametrize("baseline", PACKAGES)
def test_baseline_trains(baseline):
    baseline = import_baseline(baseline)
    importlib.import_module("torch").manual_seed(0)
    _, params, _ = make_problem("mlp")
    train = baseline.make_training(
        params, num_tasks=8, num_shots=5, num_inner_steps=1, step_size=0.01, outer_step_size=0.01
    )
    losses = train(400).numpy()
    assert np.mean(losses[-100:]) < 0.9 * np.mean(losses[:100])
