"""On a GPU: the same meta-gradient as on the CPU."""

import jax
import numpy as np
import optax
import pytest

import jaxmaml


@pytest.fixture
def devices():
    """The GPU and the CPU of this machine; without a GPU, who asks for these tests gets JAX's error."""
    return jax.devices("gpu")[0], jax.devices("cpu")[0]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("remat", ["gradients", "steps"])
def test_meta_gradient_is_that_of_the_cpu(devices, remat):
    model = jaxmaml.nn.Conv4.omniglot(num_ways=5, features=16)
    loss_fn = jaxmaml.cross_entropy(model.apply)
    splits = jaxmaml.tasks.strokes.load(num_classes=(10, 5, 5), images_per_class=4)
    sample = jaxmaml.tasks.image_episodes(splits.train.images, num_ways=5, num_shots=1, num_queries=2)
    results = []
    for device in devices:
        with jax.default_device(device):
            learner = jaxmaml.maml(
                loss_fn, optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=2, remat=remat, matmul_precision="float32"
            )
            params = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
            tasks = jax.vmap(sample)(jax.random.split(jax.random.key(1), 4))
            state, _ = jax.jit(learner.update)(learner.init(params), tasks)
            results.append(jax.device_get(jax.tree.map(lambda new, old: old - new, state.params, params)))
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max() + 1e-6)
