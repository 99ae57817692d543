"""What a user's loss may be made of: terms that see the task's data, and terms that do not.

Each is `(params, batch) -> scalar` of a flat dictionary of parameters and a batch of `x` `[n, 3]`, `y` `[n]` and
`label` `[n]`, written as users write, without jaxmaml but for the layers of `jaxmaml.nn`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jaxmaml

NUM_CLASSES = 3
#: Shape of each leaf that a term may need; images are made of the inputs by `_images`.
LEAVES = {
    "w": (3, 4),
    "b": (4,),
    "v": (4,),
    "head": (4, NUM_CLASSES),
    "head_bias": (NUM_CLASSES,),
    "square": (4, 4),
    "table": (NUM_CLASSES, 4),
    "mean": (4,),
    "log_std": (4,),
    "penalty": (),
    "kernel1": (3, 3, 1, 2),
    "kernel2": (3, 3, 2, 3),
    "context": (3,),
    "norm": (4,),
    "unused": (2,),
}


def _hidden(params, batch):
    return batch["x"] @ params["w"] + params["b"][None]


def _fit(prediction, batch):
    return jnp.mean((prediction - batch["y"]) ** 2)


def tanh(params, batch):
    return _fit(jnp.tanh(_hidden(params, batch)) @ params["v"], batch)


def relu_by_maximum(params, batch):
    return _fit(jnp.maximum(_hidden(params, batch), 0.0) @ params["v"], batch)


def maximum_of_two(params, batch):
    hidden = jnp.maximum(_hidden(params, batch), jnp.sin(batch["x"] @ params["w"]))
    return _fit(jnp.minimum(hidden, 2.0 * hidden) @ params["v"], batch)


def clip(params, batch):
    return _fit(jnp.clip(_hidden(params, batch), -0.3, 0.8) @ params["v"], batch)


def largest_feature(params, batch):
    return _fit(jnp.max(_hidden(params, batch), axis=1) + jnp.min(_hidden(params, batch) ** 2, axis=1), batch)


def largest_example(params, batch):
    hidden = jax.nn.softplus(_hidden(params, batch))
    return _fit((hidden / jnp.max(hidden, axis=(0, 1))) @ params["v"], batch)


def running_maximum(params, batch):
    return _fit(jax.lax.cummax(jnp.sin(_hidden(params, batch)), axis=1) @ params["v"], batch)


def _images(batch, side):
    grid = jnp.arange(side * side, dtype=batch["x"].dtype).reshape(side, side)
    angles = batch["x"][:, 0, None, None] * grid[None] + batch["x"][:, 1, None, None]
    return jnp.sin(angles + batch["x"][:, 2, None, None] * grid.T[None])[..., None]


def _convolved(params, batch, side, convolve, pool):
    """Two blocks of convolution, statistics of the batch, pooling."""
    x = _images(batch, side)
    for name in ("kernel1", "kernel2"):
        x = convolve(
            x.astype(params[name].dtype), params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        x = pool((x - mean) / jnp.sqrt(variance + 1e-3))
    return _fit(x.mean((1, 2, 3)), batch)


def _pool_by_max(x):
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def pooled_convolution(params, batch, side=8):
    return _convolved(params, batch, side, jax.lax.conv_general_dilated, _pool_by_max)


def pooled_convolution_of_the_library(params, batch, side=8):
    return _convolved(params, batch, side, jaxmaml.nn.conv_general_dilated, _pool_by_max)


def layers_of_the_library(params, batch):
    return _convolved(params, batch, 6, jaxmaml.nn.conv_general_dilated, jaxmaml.nn.max_pool)


def clipped_convolution(params, batch):
    return _convolved(params, batch, 8, jaxmaml.nn.conv_general_dilated, lambda x: jnp.clip(x, -0.5, 0.7)[:, ::2, ::2])


def sort(params, batch):
    return _fit(jnp.sort(_hidden(params, batch), axis=1) @ params["v"], batch)


def top_k(params, batch):
    return _fit(jax.lax.top_k(_hidden(params, batch), 2)[0].sum(1), batch)


def norms(params, batch):
    hidden = _hidden(params, batch)
    return _fit(jnp.linalg.norm(hidden + 3.0, axis=1), batch) + jnp.linalg.norm(hidden + 1.0)


def scanned(params, batch):
    """A recurrent net over the inputs."""

    def cell(state, x):
        state = jnp.tanh(state @ params["square"] + x[:, None] * params["b"][None])
        return state, state @ params["v"]

    start = jnp.zeros((len(batch["y"]), 4), params["b"].dtype)
    state, outputs = jax.lax.scan(cell, start, batch["x"].T)
    return _fit(state @ params["v"] + outputs.mean(0), batch)


def branches(params, batch):
    hidden = _hidden(params, batch)
    prediction = jax.lax.cond(
        jnp.mean(batch["x"]) > 0.0, lambda h: jnp.sin(h) @ params["v"], lambda h: jnp.sum(h**2, 1) * 0.1, hidden
    )
    return _fit(prediction, batch)


def rematerialised(params, batch):
    hidden = jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ params["w"]) @ params["square"]))(batch["x"])
    return _fit(hidden @ params["v"], batch)


@jax.custom_jvp
def _logistic(x):
    return 1 / (1 + jnp.exp(-x))


@_logistic.defjvp
def _logistic_rule(primals, tangents):
    y = _logistic(*primals)
    return y, y * (1 - y) * tangents[0]


def custom_jvp(params, batch):
    return _fit(_logistic(_hidden(params, batch)) @ params["v"], batch)


@jax.custom_vjp
def _hinge(x):
    return jnp.maximum(x, 0.0) ** 3


_hinge.defvjp(lambda x: (_hinge(x), x), lambda x, g: (3 * jnp.maximum(x, 0.0) ** 2 * g,))


def custom_vjp(params, batch):
    return _fit(_hinge(_hidden(params, batch)) @ params["v"], batch)


@jax.custom_vjp
def _scaled_and_squared(x, scale):
    return x * scale, scale**2


def _scaled_and_squared_backward(kept, cotangents):
    x, scale = kept
    return scale * cotangents[0], jnp.sum(x * cotangents[0]) + 2 * scale * cotangents[1]


_scaled_and_squared.defvjp(lambda x, scale: (_scaled_and_squared(x, scale), (x, scale)), _scaled_and_squared_backward)


def custom_vjp_of_two(params, batch):
    """A custom rule of which one result sees no task data."""
    hidden, square = _scaled_and_squared(_hidden(params, batch), params["penalty"])
    return _fit(jnp.tanh(hidden) @ params["v"], batch) + 0.1 * square


def embeddings(params, batch):
    return _fit(jnp.tanh(params["table"][batch["label"]]) @ params["v"], batch)


def cross_entropy(params, batch):
    logits = jnp.tanh(_hidden(params, batch)) @ params["head"] + params["head_bias"][None]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def tied(params, batch):
    code = jnp.tanh(_hidden(params, batch))
    return jnp.mean((code @ params["w"].T - batch["x"]) ** 2)


def solved(params, batch):
    """The marginal likelihood of a Gaussian process with learned features."""
    features = jnp.tanh(_hidden(params, batch))
    gram = features @ features.T + jnp.eye(len(batch["y"]), dtype=features.dtype)
    factor = jnp.linalg.cholesky(gram)
    white = jax.scipy.linalg.solve_triangular(factor, batch["y"], lower=True)
    return 0.1 * (white @ white / 2 + jnp.sum(jnp.log(jnp.diagonal(factor))))


def with_context(params, batch):
    return _fit(jnp.sin((batch["x"] + params["context"][None]) @ params["w"]) @ params["v"], batch)


def normalised(params, batch):
    hidden = _hidden(params, batch)
    hidden = (hidden - hidden.mean(0, keepdims=True)) / jnp.sqrt(hidden.var(0, keepdims=True) + 1e-3)
    return _fit((hidden * params["norm"][None]) @ params["v"], batch)


def dropout(params, batch):
    keep = jax.random.bernoulli(jax.random.key(3), 0.7, (len(batch["y"]), 4))
    return _fit(jnp.where(keep, jnp.tanh(_hidden(params, batch)), 0.0) @ params["v"], batch)


def running_sums(params, batch):
    return _fit(jnp.cumsum(jnp.tanh(_hidden(params, batch)), 1) @ params["v"] + jnp.prod(params["b"]), batch)


def constant_target(params, batch):
    """A target net, through which no gradient flows."""
    target = jax.lax.stop_gradient(jnp.sin(_hidden(params, batch)) @ params["v"])
    return _fit(jnp.tanh(_hidden(params, batch)) @ params["v"] - 0.5 * target, batch)


def spectrum(params, batch):
    return 0.1 * jnp.mean(jnp.abs(jnp.fft.fft(jnp.tanh(_hidden(params, batch)), axis=1)) ** 2)


def median(params, batch):
    return _fit(jnp.median(_hidden(params, batch), axis=1), batch)


def attention(params, batch):
    tokens = jnp.tanh(_hidden(params, batch))
    scores = tokens @ params["square"] @ tokens.T
    return _fit(jax.nn.softmax(scores, axis=-1) @ tokens @ params["v"], batch)


def largest_in_group(params, batch):
    """As graph nets pool their neighbours."""
    groups = jnp.arange(len(batch["y"])) // 2
    pooled = jax.ops.segment_max(jnp.sin(_hidden(params, batch)), groups, num_segments=(len(batch["y"]) + 1) // 2)
    return jnp.mean((pooled @ params["v"]) ** 2)


def long_short_term_memory(params, batch):
    """flax's optimised cell, over the inputs."""
    cell = linen.OptimizedLSTMCell(4)
    sequence = batch["x"].T[:, :, None] * params["b"][None, None]
    weights = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), sequence[0].shape), sequence[0])
    weights = jax.tree.map(lambda leaf: leaf.astype(params["square"].dtype), weights)
    weights["params"]["hi"]["kernel"] = weights["params"]["hi"]["kernel"] + params["square"]
    carry = cell.initialize_carry(jax.random.key(0), sequence[0].shape)
    for x in sequence:
        carry, output = cell.apply(weights, carry, x)
    return _fit(output @ params["v"], batch)


def smoothed(params, batch):
    """A linear recurrence, by an associative scan."""

    def combine(one, other):
        return one[0] * other[0], one[1] * other[0] + other[1]

    decay = jax.nn.sigmoid(params["b"][None] + 0.0 * batch["x"] @ params["w"])
    _, states = jax.lax.associative_scan(combine, (decay, jnp.tanh(batch["x"] @ params["w"])))
    return _fit(states @ params["v"], batch)


def one_by_one(params, batch):
    each = jax.jit(lambda x: jnp.maximum(jnp.max(x @ params["w"] + params["b"]), jnp.sin(x[0])))
    return _fit(jax.lax.map(each, batch["x"]), batch)


def penalty(params, batch):
    """A learned weight decay."""
    return (params["penalty"] ** 2) * jnp.sum(params["v"] ** 2)


def gaussian_prior(params, batch):
    """The divergence of a learned Gaussian from a standard one, in nats."""
    variance = jnp.exp(2 * params["log_std"])
    return 0.05 * jnp.sum(variance + params["mean"] ** 2 - 1 - 2 * params["log_std"])


def residual(params, batch):
    """Of `u'' + u = penalty` at fixed points, for a small net."""
    points = jnp.linspace(-1.0, 1.0, 5, dtype=params["v"].dtype)
    u = lambda t: jnp.tanh(t * params["b"] + params["mean"]) @ params["v"]  # noqa: E731
    second = jax.vmap(jax.grad(jax.grad(u)))(points)
    return jnp.mean((second + jax.vmap(u)(points) - params["penalty"]) ** 2)


def rehearsal(params, batch):
    """An old batch, the same for every task."""
    x = jnp.asarray(np.sin(np.arange(12.0)).reshape(4, 3), params["w"].dtype)
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"] - 0.5) ** 2)


def absolute_weights(params, batch):
    return 0.05 * sum(jnp.sum(jnp.abs(params[name])) for name in ("w", "v"))


def largest_weight(params, batch):
    return 0.1 * jnp.max(jnp.sin(params["square"]) ** 2) + 0.1 * jnp.maximum(jnp.sum(params["v"] ** 2), 0.3)


def noise_free_constant(params, batch):
    return jnp.zeros((), params["v"].dtype) + 0.7


#: name: the leaves that a term needs.
WITH_DATA = {
    tanh: "w b v",
    relu_by_maximum: "w b v",
    maximum_of_two: "w b v",
    clip: "w b v",
    largest_feature: "w b",
    largest_example: "w b v",
    running_maximum: "w b v",
    pooled_convolution: "kernel1 kernel2",
    pooled_convolution_of_the_library: "kernel1 kernel2",
    layers_of_the_library: "kernel1 kernel2",
    clipped_convolution: "kernel1 kernel2",
    sort: "w b v",
    top_k: "w b",
    norms: "w b",
    scanned: "square b v",
    branches: "w b v",
    rematerialised: "w square v",
    custom_jvp: "w b v",
    custom_vjp: "w b v",
    custom_vjp_of_two: "w b v penalty",
    embeddings: "table v",
    cross_entropy: "w b head head_bias",
    tied: "w b",
    solved: "w b",
    with_context: "w v context",
    normalised: "w b v norm",
    dropout: "w b v",
    running_sums: "w b v",
    constant_target: "w b v",
    spectrum: "w b",
    median: "w b",
    attention: "w b square v",
    largest_in_group: "w b v",
    long_short_term_memory: "square b v",
    smoothed: "w b v",
    one_by_one: "w b",
}
WITHOUT_DATA = {
    penalty: "penalty v",
    gaussian_prior: "mean log_std",
    residual: "b mean v penalty",
    rehearsal: "w b v",
    absolute_weights: "w v",
    largest_weight: "square v",
    noise_free_constant: "v",
}
TERMS = {
    term.__name__: (term, needs.split()) for term, needs in itertools.chain(WITH_DATA.items(), WITHOUT_DATA.items())
}
#: Those whose derivative plain JAX takes by comparing values that XLA may have rounded differently.
EXTREMA = {
    term.__name__
    for term in (
        relu_by_maximum,
        maximum_of_two,
        clip,
        largest_feature,
        largest_example,
        running_maximum,
        pooled_convolution,
        pooled_convolution_of_the_library,
        clipped_convolution,
        custom_vjp,
        one_by_one,
        largest_in_group,
        largest_weight,
    )
}


def loss_of(names, with_aux=False):
    """The sum of terms, as a loss function."""

    def loss(params, batch):
        values = [TERMS[name][0](params, batch) for name in names]
        total = functools.reduce(jnp.add, values)
        return (total, {"terms": jnp.stack(values), "count": 3}) if with_aux else total

    return loss


def params_of(names, seed, extra=()):
    """Parameters that the terms need, and a leaf that none uses, in float64."""
    rng = np.random.default_rng(seed)
    needed = {leaf for name in names for leaf in TERMS[name][1]} | set(extra) | {"unused"}
    return {
        leaf: jnp.asarray(0.5 * rng.normal(size=shape) + (leaf in ("norm", "penalty")))
        for leaf, shape in LEAVES.items()
        if leaf in needed
    }


def tasks_of(num_tasks, num_examples, seed):
    """Pairs of batches."""
    rng = np.random.default_rng(seed + 1)

    def batch():
        x = rng.normal(size=(num_examples, 3))
        y = np.sin(x @ rng.normal(size=3))
        return {"x": jnp.asarray(x), "y": jnp.asarray(y), "label": jnp.asarray(np.arange(num_examples) % NUM_CLASSES)}

    return [(batch(), batch()) for _ in range(num_tasks)]
