"""A mixture of task families."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import checks, keys
from jaxmaml.training.samplers import Sampler, as_pytree
from jaxmaml.types import Task


def mixture(samplers: Sequence[Sampler], weights: Sequence[float] | None = None) -> jax.tree_util.Partial:
    """Build a sampler that draws each task from one of several families, chosen at random.

    Family `i` is chosen with probability `weights[i] / sum(weights)`. Under `vmap`, which a batch of tasks is drawn by,
    every family is drawn for every task and one is kept.

    Args:
      samplers: `key -> Task`, of the same structure, shapes and dtypes.
      weights: Positive numbers, one for each sampler; equal by default.
    Returns:
      `sample(key) -> Task`, pure, and a pytree whose leaves are those of the samplers and the weights.
    Raises:
      TypeError: If a sampler cannot be called.
      ValueError: If there are none, the weights do not fit, or the tasks are of different structures or shapes.
    Example:
      >>> import jax, jaxmaml
      >>> families = [jaxmaml.tasks.sinusoid(5), jaxmaml.tasks.sinusoid(5, noise_std=0.3)]
      >>> sample = jaxmaml.tasks.mixture(families, weights=[3, 1])
      >>> sample(jax.random.key(0)).support.inputs.shape
      (5, 1)
    """
    samplers = tuple(samplers)
    if not samplers:
        raise ValueError("`samplers` has no sampler.")
    weights = [1.0] * len(samplers) if weights is None else list(weights)
    if len(weights) != len(samplers):
        raise ValueError(f"`weights` must have one number for each of {len(samplers)} samplers, got {len(weights)}.")
    for index, (sample, weight) in enumerate(zip(samplers, weights, strict=True)):
        checks.function(f"samplers[{index}]", sample)
        checks.positive(f"weights[{index}]", weight)
    shapes = [jax.eval_shape(sample, keys.threefry(jax.random.key(0))) for sample in samplers]
    for index, shape in enumerate(shapes):
        checks.task(f"samplers[{index}](key)", shape)
        if shape != shapes[0]:
            raise ValueError(
                f"All `samplers` must draw tasks of one structure and of the same shapes and dtypes: samplers[{index}] "
                f"draws {shape}, and samplers[0] {shapes[0]}."
            )
    logits = jnp.log(jnp.asarray(np.asarray(weights, float)))
    return jax.tree_util.Partial(_draw, tuple(map(as_pytree, samplers)), logits)


def _draw(samplers: tuple[Sampler, ...], logits: jax.Array, key: chex.PRNGKey) -> Task:
    family_key, task_key = jax.random.split(key)
    return jax.lax.switch(jax.random.categorical(family_key, logits), samplers, task_key)
