"""Every factory of the family, on one small problem each, for tests that hold for all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml
from tests import problems


def regression(dtype=jnp.float32):
    """An MLP in two named parts, with a context, a scale of its hidden layer and a warp layer."""
    rng = np.random.default_rng(5)
    tree = {
        "body": {"kernel": rng.normal(size=(3, 6)), "bias": 0.1 * rng.normal(size=6)},
        "norm": {"scale": 1 + 0.1 * rng.normal(size=6)},
        "warp": {"kernel": np.eye(6) + 0.1 * rng.normal(size=(6, 6))},
        "head": {"kernel": rng.normal(size=(6, 1)), "bias": np.zeros(1)},
        "context": 0.1 * rng.normal(size=2),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def apply(params, x):
    context = jnp.broadcast_to(params["context"], (x.shape[0], 2))
    hidden = jnp.concatenate([x, context], axis=1) @ params["body"]["kernel"] + params["body"]["bias"][None]
    hidden = jnp.tanh((hidden * params["norm"]["scale"][None]) @ params["warp"]["kernel"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


loss_fn = jaxmaml.mean_squared_error(apply)


def embed(params, x):
    return jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"][None])


def classify(params, x):
    return embed(params, x) @ params["head"]["kernel"] + params["head"]["bias"][None]


classification_loss = jaxmaml.cross_entropy(classify)


def classification(dtype=jnp.float32):
    rng = np.random.default_rng(6)
    tree = {
        "body": {"kernel": rng.normal(size=(4, 5)), "bias": 0.1 * rng.normal(size=5)},
        "head": {"kernel": rng.normal(size=(5, 3)), "bias": 0.1 * rng.normal(size=3)},
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def classification_tasks(num_tasks=4, dtype=jnp.float32):
    rng = np.random.default_rng(7)
    inputs = jnp.asarray(rng.normal(size=(2, num_tasks, 6, 4)), dtype)
    labels = jnp.broadcast_to(jnp.array([0, 1, 2, 2, 1, 0]), (num_tasks, 6))
    return jaxmaml.Task(jaxmaml.Batch(inputs[0], labels), jaxmaml.Batch(inputs[1], labels))


def regression_tasks(num_tasks=4, dtype=jnp.float32):
    tasks = problems.mlp_tasks(num_tasks, dtype)
    return jaxmaml.Task(jaxmaml.Batch(*tasks.support), jaxmaml.Batch(*tasks.query))


def particles(dtype=jnp.float32):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf + 0.01, 0.9 * leaf - 0.02]), regression(dtype))


def _with(factory, inner=None, outer=None, **own):
    inner = optax.sgd(0.05) if inner is None else inner

    outer = optax.sgd(0.1) if outer is None else outer

    def make(loss_fn, **axes):
        return factory(loss_fn, inner, outer, num_inner_steps=3, **own, **axes)

    return make


#: name: `(loss_fn, **axes) -> learner`, three inner steps each.
FACTORIES = {
    "maml": _with(jaxmaml.maml),
    "fomaml": _with(jaxmaml.fomaml),
    "reptile": _with(jaxmaml.reptile, optax.adam(1e-2, b1=0.0)),
    "anil": _with(jaxmaml.anil, head="head"),
    "boil": _with(jaxmaml.boil, head="head"),
    "meta_sgd": _with(jaxmaml.meta_sgd, 0.05),
    "maml_plus_plus": _with(
        jaxmaml.maml_plus_plus, 0.05, 1e-3, normalisation="norm", num_outer_steps=40, first_order_steps=1
    ),
    "imaml": _with(jaxmaml.imaml, tolerance=0.1),
    "cavia": _with(jaxmaml.cavia, context="context"),
    "meta_curvature": _with(jaxmaml.meta_curvature),
    "warp_maml": _with(jaxmaml.warp_maml, warp="warp"),
    "proto_maml": _with(jaxmaml.proto_maml, embed=embed, head="head"),
    "es_maml": _with(jaxmaml.es_maml, num_pairs=3),
    "bayesian_maml": _with(jaxmaml.bayesian_maml, 0.05),
    "joint_training": _with(jaxmaml.joint_training),
}

#: Those whose step is not the gradient of the reported query loss: it is another objective's, or an approximation.
OTHER_GRADIENTS = ("fomaml", "reptile", "imaml", "es_maml", "bayesian_maml", "maml_plus_plus")


def problem(name, dtype=jnp.float32, **axes):
    """`(learner, params, tasks)` of a factory."""
    if name == "proto_maml":
        return FACTORIES[name](classification_loss, **axes), classification(dtype), classification_tasks(4, dtype)
    params = particles(dtype) if name == "bayesian_maml" else regression(dtype)
    return FACTORIES[name](loss_fn, **axes), params, regression_tasks(4, dtype)
