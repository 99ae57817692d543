"""Small problems that many tests share."""

import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jaxmaml


def quadratic_loss(params, centre):
    """0.5 |theta - c|^2: gradient theta - c, Hessian the identity."""
    return 0.5 * jnp.sum(jnp.square(params["theta"] - centre))


def mlp(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def mlp_loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(mlp(params, x) - y))


def mlp_params(dtype=jnp.float32, widths=(1, 8, 8, 1)):
    rng = np.random.default_rng(1)
    return [
        {
            "w": jnp.asarray(rng.normal(size=(i, o)) / np.sqrt(i), dtype),
            "b": jnp.asarray(0.1 * rng.normal(size=o), dtype),
        }
        for i, o in itertools.pairwise(widths)
    ]


def mlp_tasks(num_tasks=4, dtype=jnp.float32, num_examples=6):
    rng = np.random.default_rng(2)

    def batch():
        x = rng.uniform(-3, 3, size=(num_tasks, num_examples, 1))
        return jnp.asarray(x, dtype), jnp.asarray(np.sin(x + rng.normal(size=(num_tasks, 1, 1))), dtype)

    return jaxmaml.Task(support=batch(), query=batch())


def conv_problem(dtype, num_tasks=2):
    """A batch-normalised convolutional net with max-pooling, and a batch of tasks for it."""
    rng = np.random.default_rng(3)

    def block(x, layer):
        x = jaxmaml.nn.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jaxmaml.nn.batch_norm(x, layer["scale"], layer["bias"])
        return jaxmaml.nn.max_pool(jax.nn.softplus(x))

    def apply(params, x):
        for layer in params["blocks"]:
            x = block(x, layer)
        return x.reshape(x.shape[0], -1) @ params["head"]

    def layer(channels_in, channels_out):
        return {
            "kernel": jnp.asarray(0.5 * rng.normal(size=(3, 3, channels_in, channels_out)), dtype),
            "scale": jnp.asarray(1 + 0.1 * rng.normal(size=channels_out), dtype),
            "bias": jnp.asarray(0.1 * rng.normal(size=channels_out), dtype),
        }

    params = {"blocks": [layer(1, 3), layer(3, 4)], "head": jnp.asarray(rng.normal(size=(16, 3)), dtype)}
    inputs = jnp.asarray(rng.normal(size=(2, num_tasks, 6, 8, 8, 1)), dtype)
    labels = jnp.tile(jnp.array([0, 1, 2, 0, 1, 2]), (num_tasks, 1))
    tasks = jaxmaml.Task(support=(inputs[0], labels), query=(inputs[1], labels))
    return jaxmaml.cross_entropy(apply), params, tasks


class QuickClassifier(linen.Module):
    """What `jaxmaml.nn.Conv4` offers, of two layers: for tests of what is done with it."""

    num_ways: int
    features: int = 1
    normalisation: str = "batch"
    use_scale: bool = False

    @linen.compact
    def __call__(self, x, *, head=True, support=None):
        x = jaxmaml.nn.BatchNorm(use_scale=self.use_scale)(linen.avg_pool(x, (7, 7), (7, 7)))
        x = linen.Dense(8, name="body")(linen.relu(x).reshape(x.shape[0], -1))
        dense = linen.Dense(self.num_ways, name="Dense_0")
        return dense(x) if head else x


def as_users_compile(function):
    """`jax.jit(function)` with XLA's present emitters, which fuse, and so round, otherwise than those of the tests."""
    quick = "xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
    return jax.jit(function, compiler_options={"xla_cpu_use_fusion_emitters": True} if quick else None)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def meta_gradient(learner, params, tasks):
    """The meta-gradient, read off a step of plain gradient descent of size 1."""
    state = learner.init(params)
    new_state, _ = as_users_compile(learner.update)(state, tasks)
    return flat(state.params) - flat(new_state.params)


def plain_gradient(loss_fn, inner, num_inner_steps, params, tasks):
    """MAML's meta-gradient in plain JAX, operation by operation: what any way to compute it should give."""

    def query_loss(params, task):
        state = inner.init(params)
        for _ in range(num_inner_steps):
            updates, state = inner.update(jax.grad(loss_fn)(params, task.support), state, params)
            params = optax.apply_updates(params, updates)
        return loss_fn(params, task.query)

    def meta_loss(params):
        singles = [jax.tree.map(lambda leaf, i=i: leaf[i], tasks) for i in range(jax.tree.leaves(tasks)[0].shape[0])]
        return functools.reduce(jnp.add, [query_loss(params, task) for task in singles]) / len(singles)

    with jax.disable_jit():
        return flat(jax.grad(meta_loss)(params))


def maml(loss_fn, inner=None, num_inner_steps=3, **options):
    """A learner whose outer step is the meta-gradient."""
    inner = optax.sgd(0.1) if inner is None else inner
    return jaxmaml.maml(loss_fn, inner, optax.sgd(1.0), num_inner_steps=num_inner_steps, **options)
