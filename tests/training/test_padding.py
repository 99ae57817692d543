"""Padding is without effect, or the loss is refused at the start of `fit` and of `evaluate`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import jaxmaml
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles")

KEY = jax.random.key(0)


class Normalised(linen.Module):
    """A classifier of 8 x 8 images with statistics of the batch, or of each example."""

    kind: str

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8)(x.reshape(x.shape[0], -1))
        x = jaxmaml.nn.BatchNorm()(x) if self.kind == "batch" else linen.LayerNorm()(x)
        return linen.Dense(2)(linen.relu(x))


def sample_images(key, support=True, query=True):
    """Five images each, of which the last two or so are padding."""

    def batch(key, is_weighted):
        x = jax.random.uniform(key, (5, 8, 8, 1))
        labels = jnp.array([0, 1, 0, 1, 0])
        return jaxmaml.WeightedBatch(x, labels, jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])) if is_weighted else (x, labels)

    keys = jax.random.split(key)
    return jaxmaml.Task(batch(keys[0], support), batch(keys[1], query))


def learner_of(loss_fn, **options):
    return jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.adam(1e-2), num_inner_steps=1, **options)


def run(how, loss_fn, params, sample, **options):
    """Train or evaluate."""
    learner = learner_of(loss_fn, **options)
    state = learner.init(params)
    if how == "fit":
        return jaxmaml.fit(learner, state, sample, KEY, num_steps=1, num_tasks=2, progress=False)
    if how == "evaluate":
        return jaxmaml.evaluate(learner, loss_fn, state, sample, KEY, num_inner_steps=1, num_tasks=2)
    tasks = jax.vmap(sample)(jax.random.split(KEY, 2))
    return jaxmaml.evaluate(learner, loss_fn, state, tasks, num_inner_steps=1)


WAYS = ["fit", "evaluate", "evaluate a batch"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("where", ["support", "query"])
def test_statistics_of_the_batch_are_refused(how, where):
    """Although the library's loss replaces the contents of padding, so that these have no effect."""
    sample = functools.partial(sample_images, **{"support": where == "support", "query": where == "query"})
    model = Normalised("batch")
    params = model.init(KEY, jnp.ones((1, 8, 8, 1)))
    with pytest.raises(ValueError, match=f"must not change with the padding .* on examples of a {where}"):
        run(how, jaxmaml.cross_entropy(model.apply), params, sample)


@pytest.mark.parametrize("how", WAYS)
def test_statistics_of_each_example_are_accepted(how):
    model = Normalised("layer")
    params = model.init(KEY, jnp.ones((1, 8, 8, 1)))
    run(how, jaxmaml.cross_entropy(model.apply), params, sample_images)


@pytest.mark.slow
def test_conv4():
    losses = {kind: jaxmaml.nn.Conv4.omniglot(2, features=4, normalisation=kind) for kind in ("batch", "layer")}
    sample = lambda key: jax.tree.map(  # noqa: E731
        lambda leaf: jnp.repeat(jnp.repeat(leaf, 3, 1), 3, 2) if leaf.ndim == 4 else leaf, sample_images(key)
    )
    for kind, model in losses.items():
        params, loss_fn = model.init(KEY, jnp.ones((1, 24, 24, 1))), jaxmaml.cross_entropy(model.apply)
        if kind == "layer":
            run("evaluate", loss_fn, params, sample)
            continue
        with pytest.raises(ValueError, match="must not change with the padding"):
            run("evaluate", loss_fn, params, sample)


def sample_points(key):
    x, y = jax.random.normal(key, (2, 4, 1))
    batch = jaxmaml.WeightedBatch(x, y, jnp.array([2.0, 1.0, 1.0, 0.0]))
    return jaxmaml.Task(batch, batch)


def unweighted(params, batch):
    return problems.mlp_loss(params, batch[:2])


def of_their_number(params, batch):
    """Divided by the number of all examples, so that padding makes it smaller."""
    residuals = jnp.square(problems.mlp(params, batch.inputs) - batch.targets)
    return jnp.mean(batch.weights[:, None] * residuals)


def weighted(params, batch):
    residuals = jnp.square(problems.mlp(params, batch.inputs) - batch.targets)
    return jnp.sum(batch.weights[:, None] * residuals) / jnp.sum(batch.weights)


def masked(params, batch):
    """Weights as a mask: their sizes do not matter to it."""
    return weighted(params, batch._replace(weights=(batch.weights > 0).astype(jnp.float32)))


def standardised(params, batch):
    """Weighted, of inputs that are centred by the mean of the batch, padding included."""
    return weighted(params, batch._replace(inputs=batch.inputs - jnp.mean(batch.inputs)[None, None]))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("loss_fn", [unweighted, of_their_number, standardised])
def test_a_loss_of_ones_own_that_padding_moves_is_refused(how, loss_fn):
    with pytest.raises(ValueError, match=r"`loss_fn` must not change with the padding"):
        run(how, loss_fn, problems.mlp_params(), sample_points)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("loss_fn", [weighted, masked, jaxmaml.mean_squared_error(problems.mlp)])
def test_a_loss_that_padding_does_not_move_is_accepted(how, loss_fn):
    run(how, loss_fn, problems.mlp_params(), sample_points)


def test_a_model_of_a_fixed_number_of_examples_is_looked_at_too():
    def fixed(loss_fn):
        return lambda params, batch: loss_fn(params, batch._replace(inputs=batch.inputs.reshape(4, 1)))

    run("fit", fixed(weighted), problems.mlp_params(), sample_points)
    with pytest.raises(ValueError, match="must not change with the padding"):
        run("fit", fixed(unweighted), problems.mlp_params(), sample_points)


def test_a_loss_that_is_never_finite_is_left_to_training():
    with pytest.raises(jaxmaml.NonFiniteError):
        run("fit", lambda params, batch: jnp.nan * weighted(params, batch), problems.mlp_params(), sample_points)


def test_nothing_is_looked_at_under_jit():
    learner = learner_of(unweighted)
    tasks = jax.vmap(sample_points)(jax.random.split(KEY, 2))
    result = jax.jit(lambda state: jaxmaml.evaluate(learner, unweighted, state, tasks, num_inner_steps=1))(
        learner.init(problems.mlp_params())
    )
    assert np.isfinite(result.query_loss.mean).all()
