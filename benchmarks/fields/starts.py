"""The parameters from which new images are fitted, and how they are trained."""

import dataclasses
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml
from benchmarks.adaptation.problem import train
from jaxmaml.training.samplers import Sampler

SIZE = 32
NUM_INNER_STEPS = 2
INNER_RATE, OUTER_RATE = 1e-2, 1e-3
REPTILE_STEPS, REPTILE_RATE, REPTILE_OUTER_RATE = 10, 1e-2, 1e-3
MEAN_RATE = 1e-3
NUM_TASKS, MEAN_NUM_TASKS = 3, 8
OUTER_STEPS = 1500
IMAGES_PER_CLASS = 60


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters to begin with.

    Attributes:
      name: The name in tables.
      params: The parameters.
      first: `(number, rate)` of the steps of SGD that it was trained for; `(0, 0.0)` for none.
      outer_steps: The number of training steps.
      seconds: The training time, including compilation.
      note: How it was made.
    """

    name: str
    params: Any
    first: tuple[int, float] = (0, 0.0)
    outer_steps: int = 0
    seconds: float = 0.0
    note: str = ""


def model(channels: int) -> jaxmaml.nn.Siren:
    return jaxmaml.nn.Siren((128, 128, 128, 128, channels))


def samplers(data_dir: pathlib.Path | None) -> tuple[Sampler, Sampler, Sampler]:
    """Images for training, validation and test; phantoms, of which there are always new ones, without a folder."""
    if data_dir is None:
        sample = jaxmaml.tasks.fields.phantoms(SIZE)
        return sample, sample, sample
    splits = jaxmaml.tasks.image_folders.load(data_dir, image_size=SIZE, images_per_class=IMAGES_PER_CLASS)

    def sampler(classes: jaxmaml.tasks.ImageClasses) -> Sampler:
        return jaxmaml.tasks.fields.images(np.reshape(classes.images, (-1, *classes.images.shape[2:])))

    return sampler(splits.train), sampler(splits.valid), sampler(splits.test)


def train_all(
    net: jaxmaml.nn.Siren, loss_fn: jaxmaml.LossFn, sample: Sampler, key: chex.PRNGKey, outer_steps: int
) -> list[Start]:
    """Every start, from the same initial parameters and the same training images."""
    init_key, train_key = jax.random.split(key)
    params = net.init(init_key, jnp.zeros((1, 2)))

    def trained(name: str, learner: jaxmaml.MetaLearner, first: tuple[int, float], note: str, num_tasks: int) -> Start:
        found, seconds = train(
            name,
            learner,
            params,
            sample,
            train_key,
            outer_steps=outer_steps,
            num_tasks=num_tasks,
            steps_per_dispatch=min(100, outer_steps),
        )
        return Start(name, found, first, outer_steps, round(seconds, 1), note)

    def falling(rate: float) -> optax.GradientTransformation:
        # The first gradients are thousands of times as large as later ones, and would fill Adam's averages.
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, outer_steps)))

    inner, reptile_inner = optax.sgd(INNER_RATE), optax.sgd(REPTILE_RATE)
    return [
        trained(
            "MAML",
            jaxmaml.maml(loss_fn, inner, falling(OUTER_RATE), num_inner_steps=NUM_INNER_STEPS),
            (NUM_INNER_STEPS, INNER_RATE),
            f"{NUM_INNER_STEPS} steps of SGD at {INNER_RATE}, {NUM_TASKS} images, "
            f"Adam at {OUTER_RATE}, falling, gradients clipped",
            NUM_TASKS,
        ),
        trained(
            "Reptile",
            jaxmaml.reptile(loss_fn, reptile_inner, falling(REPTILE_OUTER_RATE), num_inner_steps=REPTILE_STEPS),
            (REPTILE_STEPS, REPTILE_RATE),
            f"{REPTILE_STEPS} steps of SGD at {REPTILE_RATE}, {NUM_TASKS} images, "
            f"Adam at {REPTILE_OUTER_RATE}, falling, gradients clipped",
            NUM_TASKS,
        ),
        trained(
            "mean start",
            jaxmaml.joint_training(loss_fn, inner, falling(MEAN_RATE), num_inner_steps=1),
            (0, 0.0),
            f"one field for all images, {MEAN_NUM_TASKS} an outer step, "
            f"Adam at {MEAN_RATE}, falling, gradients clipped",
            MEAN_NUM_TASKS,
        ),
        Start("standard initialisation", params, note="the start of all training"),
    ]
