"""The gated recurrent unit, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml

MODEL = jaxmaml.nn.GRU(num_hidden=5, num_outputs=2)


def random_params(key, inputs, dtype=jnp.float32):
    """Parameters of which none is zero, so that every term of the equations counts."""
    params = MODEL.init(key, jnp.zeros((1, inputs)))
    leaves, structure = jax.tree.flatten(params)
    drawn = [jax.random.normal(k, leaf.shape, dtype) for k, leaf in zip(jax.random.split(key, 99), leaves)]  # noqa: B905
    return jax.tree.unflatten(structure, drawn)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(params, x):
    """The equations of Cho et al., one time after the other, with a matrix for each gate."""
    layers = jax.tree.map(np.asarray, params["params"])
    w_r, w_z, w_c = np.split(layers["input_kernel"], 3, axis=1)
    b_r, b_z, b_c = np.split(layers["bias"], 3)
    u_r, u_z = np.split(layers["gate_kernel"], 2, axis=1)
    h, outputs = np.zeros(5), []
    for x_t in np.asarray(x):
        r = sigmoid(x_t @ w_r + h @ u_r + b_r)
        z = sigmoid(x_t @ w_z + h @ u_z + b_z)
        c = np.tanh(x_t @ w_c + (r * h) @ layers["candidate_kernel"] + b_c)
        h = z * h + (1 - z) * c
        outputs.append(h @ layers["output"]["kernel"] + layers["output"]["bias"])
    return np.stack(outputs)


def test_outputs_are_those_of_a_loop(x64):
    params = random_params(jax.random.key(0), 3, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (4, 7, 3), jnp.float64)
    expected = np.stack([by_hand(params, sequence) for sequence in x])
    np.testing.assert_allclose(MODEL.apply(params, x), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(MODEL.apply)(params, x[0]), expected[0], rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(MODEL.apply, (None, 0))(params, x), expected, rtol=1e-12)


def test_gradients_are_differences(x64):
    params = random_params(jax.random.key(2), 2, jnp.float64)
    x = jax.random.normal(jax.random.key(3), (6, 2), jnp.float64)
    jax.test_util.check_grads(lambda params: MODEL.apply(params, x), (params,), order=2, modes=["rev"])


def test_nothing_depends_on_later_inputs():
    params = random_params(jax.random.key(4), 1)
    x = jax.random.normal(jax.random.key(5), (9, 1))
    jacobian = jax.jacobian(lambda x: MODEL.apply(params, x).sum(-1))(x)[:, :, 0]
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0.0)
    assert (np.abs(np.diag(jacobian)) > 1e-6).all()
    assert np.abs(jacobian[8, 7]) > 1e-6


def test_the_initial_parameters():
    params = jaxmaml.nn.GRU(64, 3).init(jax.random.key(6), jnp.zeros((1, 400)))["params"]
    np.testing.assert_allclose(params["input_kernel"].std(), 1 / np.sqrt(400), rtol=0.03)
    np.testing.assert_allclose(params["output"]["kernel"].std(), 1 / np.sqrt(64), rtol=0.2)
    assert not params["bias"].any()
    assert not params["output"]["bias"].any()
    matrices = [params["candidate_kernel"], *jnp.split(params["gate_kernel"], 2, axis=1)]
    for matrix in matrices:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(64), atol=1e-5)
    assert not np.allclose(matrices[1], matrices[2])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_precision_of_the_parameters_and_inputs_is_kept(dtype):
    params = random_params(jax.random.key(7), 2, dtype)
    assert MODEL.apply(params, jnp.ones((4, 2), dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (jaxmaml.nn.GRU(0, 1), (3, 1), "`num_hidden` must be >= 1, got 0"),
        (jaxmaml.nn.GRU(4, 0), (3, 1), "`num_outputs` must be >= 1, got 0"),
        (jaxmaml.nn.GRU(4, 1), (3,), r"`inputs` of nn.GRU must be \[..., time, inputs\], got shape \(3,\)"),
    ],
)
def test_bad_input_is_named(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.ones(shape))
