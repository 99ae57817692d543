"""Loss functions in the learners' form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def padded(inputs, targets, weights=(1.0, 2.0, 0.5), content=np.nan, label=-7):
    """Three examples, with two more of weight zero."""
    fill = lambda leaf: np.full((2, *leaf.shape[1:]), content if leaf.dtype.kind == "f" else label, leaf.dtype)  # noqa: E731
    inputs, targets = (jnp.concatenate([leaf, fill(leaf)]) for leaf in (inputs, targets))
    return jaxmaml.WeightedBatch(inputs, targets, jnp.array([*weights, 0.0, 0.0], jnp.result_type(inputs)))


RNG = np.random.default_rng(0)
X, Y, LABELS = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 2)), np.array([0, 2, 1])


def regression(dtype=jnp.float32):
    loss_fn = jaxmaml.mean_squared_error(lambda w, x: jnp.sqrt(jnp.abs(x)) @ w)
    return loss_fn, jnp.ones((4, 2), dtype), X.astype(dtype), Y.astype(dtype)


def classification(dtype=jnp.float32):
    return jaxmaml.cross_entropy(lambda w, x: x @ w), jnp.eye(4, 3, dtype=dtype), X.astype(dtype), LABELS


@pytest.mark.parametrize("problem", [regression, classification])
@pytest.mark.parametrize("content", [np.nan, np.inf, 0.0, 1e38])
def test_weights_are_those_of_a_mean_in_which_padding_has_no_part(problem, content):
    loss_fn, w, x, y = problem()
    whole = lambda w, batch: jax.tree.leaves(loss_fn(w, batch))[-1]  # noqa: E731
    each = [jax.value_and_grad(whole)(w, (x[i : i + 1], jnp.asarray(y[i : i + 1]))) for i in range(3)]
    expected = jax.tree.map(lambda a, b, c: (a + 2 * b + 0.5 * c) / 3.5, *each)
    found = jax.jit(jax.value_and_grad(whole))(w, padded(x, y, content=content))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)


def test_the_accuracy_is_weighted():
    loss_fn = jaxmaml.cross_entropy(lambda w, x: x)
    batch = padded(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    np.testing.assert_allclose(loss_fn(None, batch)[1]["accuracy"], 3 / 3.5)


def test_a_wrong_label_of_positive_weight_is_still_found():
    loss_fn, w, x, _ = classification()
    assert jnp.isnan(loss_fn(w, padded(x, np.array([0, 3, 1])))[0])


def test_an_ensemble_is_weighted():
    loss_fn, w, x, y = regression()
    ensemble, batch = jaxmaml.ensemble(loss_fn), padded(x, y)
    found, _ = ensemble(jnp.stack([w, 2 * w]), batch)
    np.testing.assert_allclose(found, (loss_fn(w, batch) + loss_fn(2 * w, batch)) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_and_does_not_overflow(dtype):
    loss_fn = jaxmaml.mean_squared_error(lambda w, x: w * x)
    batch = jaxmaml.WeightedBatch(jnp.ones(3000, dtype), jnp.zeros(3000, dtype), jnp.full(3000, 100.0, dtype))
    assert loss_fn(jnp.ones((), dtype), batch) == 1.0
    assert loss_fn(jnp.ones((), dtype), batch).dtype == dtype


def test_weights_of_zero_alone():
    loss_fn, w, x, y = regression()
    batch = padded(x, y, weights=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"`batch\.weights` must have a positive weight in every batch"):
        loss_fn(w, batch)
    assert jnp.isnan(jax.jit(loss_fn)(w, batch))
    assert jnp.isnan(jax.jit(jax.grad(loss_fn))(w, batch)).all()


def maml(loss_fn, **options):
    return jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=2, **options)


@pytest.mark.parametrize("derivative", ["mixed", "reverse"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"query_chunk_size": 1}, {"query_chunk_size": 2}])
def test_a_meta_gradient_of_padded_tasks_is_that_of_the_tasks(derivative, options, x64):
    """In chunks of the query, of which the last may be of padding alone."""
    loss_fn, w, x, y = classification(np.float64)
    full = padded(x, y, weights=(1.0, 1.0, 1.0))
    plain = (jnp.asarray(x), jnp.asarray(y))
    # Six examples, so that chunks of two are of padding alone as well.
    full = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[-1:]]), full)
    stack = lambda batch: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batch)  # noqa: E731
    reference = maml(loss_fn, derivative=derivative)
    expected, info = reference.update(reference.init(w), jaxmaml.Task(stack(plain), stack(plain)))
    learner = maml(loss_fn, derivative=derivative, **options)
    found, padded_info = jax.jit(learner.update)(learner.init(w), jaxmaml.Task(stack(full), stack(full)))
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-12)
    np.testing.assert_allclose(padded_info.query_loss, info.query_loss, rtol=1e-12)
    np.testing.assert_allclose(padded_info.aux["accuracy"], info.aux["accuracy"], rtol=1e-12)


def test_prototypes_are_weighted_means():
    start = jaxmaml.starts.prototypes(lambda params, x: x, lambda path: True, scale=0.5)
    batch = padded(np.array([[1.0], [4.0], [8.0]]), np.array([0, 0, 1]))
    params = start({"kernel": jnp.zeros((1, 3)), "bias": jnp.zeros(3)}, batch)
    np.testing.assert_allclose(params["kernel"], [[(1 + 2 * 4) / 3, 8, 0]], rtol=1e-6)


ONES = jnp.ones((2, 3, 1))
BAD_WEIGHTS = {
    "zeros": (jnp.zeros((2, 3)), ValueError, r"`tasks\.support\.weights` must have a positive weight .* number 0"),
    "one task of zeros": (jnp.array([[1.0, 0.0, 0.0], [0.0] * 3]), ValueError, "all are zero for number 1"),
    "negative": (jnp.array([[1.0, -1.0, 0.0], [1.0] * 3]), ValueError, "finite and non-negative, got -1.0 to 1.0"),
    "not finite": (jnp.full((2, 3), jnp.inf), ValueError, "finite and non-negative"),
    "integers": (jnp.ones((2, 3), int), TypeError, "must be a floating-point array, got an array of dtype int32"),
    "too few": (jnp.ones((2, 2)), ValueError, r"one weight for each example: it has shape \(2, 2\)"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights(case):
    weights, error, message = BAD_WEIGHTS[case]
    learner = maml(jaxmaml.mean_squared_error(lambda w, x: w * x))
    batch = jaxmaml.WeightedBatch(ONES, ONES, weights)
    with pytest.raises(error, match=message):
        learner.update(learner.init(jnp.ones(())), jaxmaml.Task(batch, (ONES, ONES)))


def test_bad_weights_of_a_support():
    learner = maml(jaxmaml.mean_squared_error(lambda w, x: w * x))
    with pytest.raises(ValueError, match=r"`support\.weights` must have a positive weight"):
        learner.adapt(learner.init(jnp.ones(())), jaxmaml.WeightedBatch(ONES[0], ONES[0], jnp.zeros(3)))


def test_a_padded_batch_has_no_statistics_of_the_support():
    def sample(key):
        return jaxmaml.Task(jaxmaml.WeightedBatch(ONES, ONES, ONES[..., 0]), jaxmaml.Batch(ONES, ONES))

    with pytest.raises(TypeError, match=r"`sample\(key\)\.support` is a jaxmaml.WeightedBatch"):
        jaxmaml.tasks.with_support(sample)(jax.random.key(0))
