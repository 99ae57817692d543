"""Meta-gradients against PyTorch's, in float64; tests/reference/make_torch_gradients.py made them."""

import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

STORED = np.load(pathlib.Path(__file__).parents[1] / "reference" / "torch_gradients.npz")
INNER = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: optax.adam(0.02, eps=1e-8, eps_root=1e-8),
}


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("inner", INNER)
def test_meta_gradient_equals_torch(x64, quick_compiles, inner, num_inner_steps):
    arrays = [jnp.asarray(STORED[f"param_{index}"]) for index in range(6)]
    params = [{"w": arrays[i], "b": arrays[i + 1]} for i in range(0, 6, 2)]
    x, y = STORED["x"], STORED["y"]
    tasks = jaxmaml.Task(support=(x[0], y[0]), query=(x[1], y[1]))
    expected_value = STORED[f"{inner}_{num_inner_steps}_value"]
    expected = STORED[f"{inner}_{num_inner_steps}_grad"]

    for derivative in ("mixed", "reverse"):
        learner = problems.maml(
            problems.mlp_loss, INNER[inner](), num_inner_steps=num_inner_steps, derivative=derivative
        )
        state = learner.init(params)
        new_state, info = learner.update(state, tasks)
        # Torch stored each layer's weight before its bias.
        gradient = np.concatenate(
            [
                np.ravel(before[name] - after[name])
                for before, after in zip(state.params, new_state.params, strict=True)
                for name in ("w", "b")
            ]
        )
        np.testing.assert_allclose(np.mean(info.query_loss), expected_value, rtol=1e-12)
        assert np.abs(gradient - expected).max() < 1e-9 * np.abs(expected).max()
