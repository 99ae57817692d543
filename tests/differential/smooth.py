"""Terms that see the task's data, of most of what users compute with."""

import jax
import jax.numpy as jnp
import optax
from flax import linen

from tests.differential.nets import fit, hidden_of


def tanh(params, batch):
    return fit(jnp.tanh(hidden_of(params, batch)) @ params["v"], batch)


def sort(params, batch):
    return fit(jnp.sort(hidden_of(params, batch), axis=1) @ params["v"], batch)


def top_k(params, batch):
    return fit(jax.lax.top_k(hidden_of(params, batch), 2)[0].sum(1), batch)


def norms(params, batch):
    hidden = hidden_of(params, batch)
    return fit(jnp.linalg.norm(hidden + 3.0, axis=1), batch) + jnp.linalg.norm(hidden + 1.0)


def scanned(params, batch):
    """A recurrent net over the inputs."""

    def cell(state, x):
        state = jnp.tanh(state @ params["square"] + x[:, None] * params["b"][None])
        return state, state @ params["v"]

    start = jnp.zeros((len(batch["y"]), 4), params["b"].dtype)
    state, outputs = jax.lax.scan(cell, start, batch["x"].T)
    return fit(state @ params["v"] + outputs.mean(0), batch)


def branches(params, batch):
    hidden = hidden_of(params, batch)
    prediction = jax.lax.cond(
        jnp.mean(batch["x"]) > 0.0, lambda h: jnp.sin(h) @ params["v"], lambda h: jnp.sum(h**2, 1) * 0.1, hidden
    )
    return fit(prediction, batch)


def rematerialised(params, batch):
    hidden = jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ params["w"]) @ params["square"]))(batch["x"])
    return fit(hidden @ params["v"], batch)


def embeddings(params, batch):
    return fit(jnp.tanh(params["table"][batch["label"]]) @ params["v"], batch)


def cross_entropy(params, batch):
    logits = jnp.tanh(hidden_of(params, batch)) @ params["head"] + params["head_bias"][None]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def tied(params, batch):
    code = jnp.tanh(hidden_of(params, batch))
    return jnp.mean((code @ params["w"].T - batch["x"]) ** 2)


def solved(params, batch):
    """The marginal likelihood of a Gaussian process with learned features."""
    features = jnp.tanh(hidden_of(params, batch))
    gram = features @ features.T + jnp.eye(len(batch["y"]), dtype=features.dtype)
    factor = jnp.linalg.cholesky(gram)
    white = jax.scipy.linalg.solve_triangular(factor, batch["y"], lower=True)
    return 0.1 * (white @ white / 2 + jnp.sum(jnp.log(jnp.diagonal(factor))))


def with_context(params, batch):
    return fit(jnp.sin((batch["x"] + params["context"][None]) @ params["w"]) @ params["v"], batch)


def normalised(params, batch):
    hidden = hidden_of(params, batch)
    hidden = (hidden - hidden.mean(0, keepdims=True)) / jnp.sqrt(hidden.var(0, keepdims=True) + 1e-3)
    return fit((hidden * params["norm"][None]) @ params["v"], batch)


def dropout(params, batch):
    keep = jax.random.bernoulli(jax.random.key(3), 0.7, (len(batch["y"]), 4))
    return fit(jnp.where(keep, jnp.tanh(hidden_of(params, batch)), 0.0) @ params["v"], batch)


def running_sums(params, batch):
    return fit(jnp.cumsum(jnp.tanh(hidden_of(params, batch)), 1) @ params["v"] + jnp.prod(params["b"]), batch)


def constant_target(params, batch):
    """A target net, through which no gradient flows."""
    target = jax.lax.stop_gradient(jnp.sin(hidden_of(params, batch)) @ params["v"])
    return fit(jnp.tanh(hidden_of(params, batch)) @ params["v"] - 0.5 * target, batch)


def spectrum(params, batch):
    return 0.1 * jnp.mean(jnp.abs(jnp.fft.fft(jnp.tanh(hidden_of(params, batch)), axis=1)) ** 2)


def median(params, batch):
    return fit(jnp.median(hidden_of(params, batch), axis=1), batch)


def attention(params, batch):
    tokens = jnp.tanh(hidden_of(params, batch))
    scores = tokens @ params["square"] @ tokens.T
    return fit(jax.nn.softmax(scores, axis=-1) @ tokens @ params["v"], batch)


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
    return fit(output @ params["v"], batch)


def smoothed(params, batch):
    """A linear recurrence, by an associative scan."""

    def combine(one, other):
        return one[0] * other[0], one[1] * other[0] + other[1]

    decay = jax.nn.sigmoid(params["b"][None] + 0.0 * batch["x"] @ params["w"])
    _, states = jax.lax.associative_scan(combine, (decay, jnp.tanh(batch["x"] @ params["w"])))
    return fit(states @ params["v"], batch)
