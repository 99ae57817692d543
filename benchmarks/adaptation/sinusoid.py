"""The step-count benchmark's sinusoid problem."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax

import jaxmaml
from benchmarks.adaptation import families
from benchmarks.adaptation.problem import Problem, Setting, Start, train

STEP_SIZE = 0.01
OUTER_STEPS = 70_000


def make(key: chex.PRNGKey, outer_steps: int | None) -> Problem:
    """The paper's recipe: 1 inner step at 0.01 on 10 points, 25 tasks, Adam 1e-3, 70,000 steps."""
    outer_steps = outer_steps or OUTER_STEPS
    model = jaxmaml.nn.MLP()
    # Inputs include amplitude and phase for the oracle; the other models use x alone.
    blind_loss = jaxmaml.mean_squared_error(lambda params, inputs: model.apply(params, inputs[:, :1]))
    told_loss = jaxmaml.mean_squared_error(model.apply)
    sample = jaxmaml.tasks.sinusoid(with_parameters=True)
    init_key, train_key = jax.random.split(key)
    blind = model.init(init_key, jnp.zeros((1, 1)))
    told = model.init(init_key, jnp.zeros((1, 3)))

    def trained(name, factory, loss_fn, params, search=False, note="") -> Start:
        params, seconds = train(
            name,
            factory(loss_fn, optax.sgd(STEP_SIZE), optax.adam(1e-3), num_inner_steps=1),
            params,
            sample,
            train_key,
            outer_steps=outer_steps,
            num_tasks=25,
            steps_per_dispatch=5000,
        )
        return Start(name, params, loss_fn, None if search else STEP_SIZE, outer_steps, seconds, note)

    joint = jaxmaml.joint_training
    return Problem(
        title="Sinusoid regression",
        metric="loss",
        metric_name="query MSE",
        targets=(1.0, 0.5),
        step_sizes=(0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
        # At full length a later step can overshoot on a rare task of 5 points, whose loss then dominates the mean.
        later=(1.0, 0.7, 0.5),
        settings=tuple(_setting(shots) for shots in (5, 10, 20)),
        starts=(
            functools.partial(trained, "MAML", jaxmaml.maml, blind_loss, blind),
            functools.partial(trained, "MAML, first order", jaxmaml.fomaml, blind_loss, blind),
            functools.partial(trained, "joint training", joint, blind_loss, blind, True, "regression on all tasks"),
            lambda: Start("random initialisation", blind, blind_loss, None, note="the start of all training"),
            functools.partial(trained, "oracle", joint, told_loss, told, True, "is told amplitude and phase"),
        ),
        chunk_size=100,
        protocol={
            "family": "y = A sin(x - p), A ~ U[0.1, 5], p ~ U[0, pi], x ~ U[-5, 5]",
            "model": "MLP 1-40-40-1, ReLU, no normalisation",
            "training": "1 inner step of size 0.01 on 10 points, 10 query points, 25 tasks, Adam 1e-3",
            "queries": "100 points a task",
            "joint_training_bound": "no initialisation without adaptation is below 3.006",
        },
        family=families.sinusoid,
    )


def _setting(num_shots: int) -> Setting:
    sample = jaxmaml.tasks.sinusoid(num_shots, 100, with_parameters=True)
    return Setting(f"{num_shots}-shot", sample, sample)
