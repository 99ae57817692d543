"""What a user's loss may be made of: terms that see the task's data, and terms that do not.

Each is `(params, batch) -> scalar` of a flat dictionary of parameters and a batch of `x` `[n, 3]`, `y` `[n]` and
`label` `[n]`, written as users write, without jaxmaml but for the layers of `jaxmaml.nn`.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

from tests.differential import custom_rules, maxima, priors, smooth

NUM_CLASSES = 3
#: Shape of each leaf that a term may need; images are made of the inputs by `maxima`.
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
#: name: the leaves that a term needs.
WITH_DATA = {
    smooth.tanh: "w b v",
    maxima.relu_by_maximum: "w b v",
    maxima.maximum_of_two: "w b v",
    maxima.clip: "w b v",
    maxima.largest_feature: "w b",
    maxima.largest_example: "w b v",
    maxima.running_maximum: "w b v",
    maxima.pooled_convolution: "kernel1 kernel2",
    maxima.pooled_convolution_of_the_library: "kernel1 kernel2",
    maxima.layers_of_the_library: "kernel1 kernel2",
    maxima.clipped_convolution: "kernel1 kernel2",
    smooth.sort: "w b v",
    smooth.top_k: "w b",
    smooth.norms: "w b",
    smooth.scanned: "square b v",
    smooth.branches: "w b v",
    smooth.rematerialised: "w square v",
    custom_rules.custom_jvp: "w b v",
    custom_rules.custom_vjp: "w b v",
    custom_rules.custom_vjp_of_two: "w b v penalty",
    smooth.embeddings: "table v",
    smooth.cross_entropy: "w b head head_bias",
    smooth.tied: "w b",
    smooth.solved: "w b",
    smooth.with_context: "w v context",
    smooth.normalised: "w b v norm",
    smooth.dropout: "w b v",
    smooth.running_sums: "w b v",
    smooth.constant_target: "w b v",
    smooth.spectrum: "w b",
    smooth.median: "w b",
    smooth.attention: "w b square v",
    maxima.largest_in_group: "w b v",
    smooth.long_short_term_memory: "square b v",
    smooth.smoothed: "w b v",
    maxima.one_by_one: "w b",
}
WITHOUT_DATA = {
    priors.penalty: "penalty v",
    priors.gaussian_prior: "mean log_std",
    priors.residual: "b mean v penalty",
    priors.rehearsal: "w b v",
    priors.absolute_weights: "w v",
    priors.largest_weight: "square v",
    priors.noise_free_constant: "v",
}
TERMS = {
    term.__name__: (term, needs.split()) for term, needs in itertools.chain(WITH_DATA.items(), WITHOUT_DATA.items())
}
#: Those whose derivative plain JAX takes by comparing values that XLA may have rounded differently.
EXTREMA = {
    term.__name__
    for term in (
        maxima.relu_by_maximum,
        maxima.maximum_of_two,
        maxima.clip,
        maxima.largest_feature,
        maxima.largest_example,
        maxima.running_maximum,
        maxima.pooled_convolution,
        maxima.pooled_convolution_of_the_library,
        maxima.clipped_convolution,
        custom_rules.custom_vjp,
        maxima.one_by_one,
        maxima.largest_in_group,
        priors.largest_weight,
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
