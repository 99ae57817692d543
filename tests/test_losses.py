"""Loss functions in the learners' form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml


def test_mean_squared_error():
    loss_fn = jaxmaml.mean_squared_error(lambda w, x: w * x)
    np.testing.assert_allclose(loss_fn(2.0, (jnp.array([1.0, 3.0]), jnp.array([0.0, 7.0]))), (4 + 1) / 2)


def test_cross_entropy_in_nats_and_accuracy():
    loss_fn = jaxmaml.cross_entropy(lambda w, x: x)
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    loss, aux = loss_fn(None, jaxmaml.Batch(logits, jnp.array([1, 1])))
    np.testing.assert_allclose(loss, -(np.log(0.25) + np.log(0.8)) / 2, rtol=1e-6)
    np.testing.assert_allclose(aux["accuracy"], 0.5)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_not_silently_another(label):
    loss_fn = jaxmaml.cross_entropy(lambda w, x: w * x)
    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(1.0, (jnp.eye(2, 3), jnp.array([1, label])))
    assert jnp.isnan(loss)
    assert jnp.isnan(gradient)


def test_a_dead_model_is_never_right():
    _, aux = jaxmaml.cross_entropy(lambda w, x: x)(None, (jnp.full((2, 3), jnp.nan), jnp.array([0, 1])))
    assert float(aux["accuracy"]) == 0.0
