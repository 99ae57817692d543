"""Joint training of image classes: a classifier of all of them, whose body a few-shot model reuses.

A task's labels have no meaning outside the task, so that joint training is classification of all classes.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml

BATCH = 128


def pretrain(
    make_classifier: Callable[[int], jaxmaml.nn.Conv4],
    images: np.ndarray,
    key: chex.PRNGKey,
    *,
    rotate: bool,
    steps: int,
    checkpoints: jaxmaml.Checkpoints | None = None,
) -> tuple[Any, float]:
    """Train a classifier of all classes by Adam on batches of 128; return its parameters and the seconds.

    With `rotate`, each image is rotated by a random multiple of 90 degrees, and each rotation of a class is a class
    of its own, so that there are four times as many. `make_classifier` gets their number.
    """
    classifier = make_classifier(len(images) * (4 if rotate else 1))
    learner = jaxmaml.joint_training(
        jaxmaml.cross_entropy(classifier.apply), optax.sgd(0.0), optax.adam(1e-3), num_inner_steps=1
    )
    began = time.perf_counter()
    state, _ = jaxmaml.fit(
        learner,
        learner.init(classifier.init(key, jnp.zeros((1, *images.shape[2:])))),
        jax.tree_util.Partial(functools.partial(_all_classes, rotate), jnp.asarray(images)),
        key,
        num_steps=steps,
        num_tasks=1,
        steps_per_dispatch=100,
        checkpoints=checkpoints,
    )
    return jax.block_until_ready(state.params), time.perf_counter() - began


def with_new_head(params: Any, few_shot_params: Any) -> Any:
    """The body of a classifier's `params`, and a head of zeros for the classes of a new task."""
    layers = dict(params["params"])
    layers["Dense_0"] = jax.tree.map(jnp.zeros_like, few_shot_params["params"]["Dense_0"])
    return {"params": layers}


def _all_classes(rotate: bool, images: jax.Array, key: chex.PRNGKey) -> jaxmaml.Task:
    """A batch of training images with their own labels, as the query of a task whose support is not used."""
    class_key, image_key, turn_key = jax.random.split(key, 3)
    classes = jax.random.randint(class_key, (BATCH,), 0, images.shape[0])
    chosen = images[classes, jax.random.randint(image_key, (BATCH,), 0, images.shape[1])]
    if rotate:
        turns = jax.random.randint(turn_key, (BATCH,), 0, 4)
        turned = jnp.stack([jnp.rot90(chosen, turn, axes=(1, 2)) for turn in range(4)])
        chosen, classes = turned[turns, jnp.arange(BATCH)], 4 * classes + turns
    batch = jaxmaml.Batch(chosen.astype(jnp.float32) / 255.0, classes)
    return jaxmaml.Task(support=jax.tree.map(lambda leaf: leaf[:1], batch), query=batch)
