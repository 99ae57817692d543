"""The step-count benchmark's Omniglot problem: 5-way 1-shot on the real characters or on procedural ones."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp

import jaxmaml
from benchmarks import families
from benchmarks.problem import Problem, Setting, Start, all_classes, train

NUM_WAYS = 5
STEP_SIZE = 2.0  # On the mean cross-entropy: the paper's 0.4 on a sum over 5 ways.
# Without second derivatives that is too far: of 2, 0.5 and 0.1 this was best on validation tasks after 2,000 steps.
FIRST_ORDER_STEP_SIZE = 0.5
OUTER_STEPS = 11_000
JOINT_BATCH = 128


def make(key: chex.PRNGKey, outer_steps: int | None, data_dir: pathlib.Path | None) -> Problem:
    """The paper's recipe, 1 inner step, 32 tasks, Adam 1e-3, for as many steps as fit half an hour."""
    splits = jaxmaml.tasks.omniglot.load(data_dir) if data_dir else jaxmaml.tasks.strokes.load()
    outer_steps = outer_steps or OUTER_STEPS
    model = jaxmaml.nn.Conv4.omniglot(NUM_WAYS)
    loss_fn = jaxmaml.cross_entropy(model.apply)
    init_key, train_key, joint_key = jax.random.split(key, 3)
    params = model.init(init_key, jnp.zeros((1, 28, 28, 1)))

    def trained(name: str, derivative: str, step_size: float) -> Start:
        start, seconds = train(
            name,
            loss_fn,
            params,
            _episodes(splits.train, num_queries=1),
            train_key,
            step_size=step_size,
            derivative=derivative,
            outer_steps=outer_steps,
            num_tasks=32,
            steps_per_dispatch=100,
            chunk_size=1,
        )
        return Start(name, start, loss_fn, step_size, outer_steps, seconds)

    def joint() -> Start:
        # Labels are drawn anew in each task, so jointly there is nothing to learn about them: the characters
        # themselves are the classes, a turned one being another, and a new task gets a new head.
        num_classes = 4 * len(splits.train.images)
        classifier = jaxmaml.nn.Conv4.omniglot(num_classes)
        start, seconds = train(
            "joint training",
            jaxmaml.cross_entropy(classifier.apply),
            classifier.init(joint_key, jnp.zeros((1, 28, 28, 1))),
            jax.tree_util.Partial(functools.partial(all_classes, JOINT_BATCH, True), jnp.asarray(splits.train.images)),
            joint_key,
            step_size=0.0,
            derivative="first_order",
            outer_steps=outer_steps,
            num_tasks=1,
            steps_per_dispatch=100,
        )
        layers = dict(start["params"])
        layers["Dense_0"] = jax.tree.map(jnp.zeros_like, params["params"]["Dense_0"])
        note = f"classifier of all {num_classes} training characters, its head replaced by zeros"
        return Start("joint training", {"params": layers}, loss_fn, None, outer_steps, seconds, note)

    return Problem(
        title=f"{'Omniglot' if data_dir else 'Procedural characters'}, {NUM_WAYS}-way 1-shot",
        metric="accuracy",
        metric_name="query accuracy",
        targets=(0.90, 0.95, 0.975),
        step_sizes=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        later=(1.0,),
        settings=tuple(
            Setting(
                f"{queries} {'query' if queries == 1 else 'queries'} a class",
                _episodes(splits.valid, 1),
                _episodes(splits.test, queries),
            )
            for queries in (1, 15)
        ),
        starts=(
            functools.partial(trained, "MAML", "mixed", STEP_SIZE),
            functools.partial(trained, "MAML, first order", "first_order", FIRST_ORDER_STEP_SIZE),
            joint,
            lambda: Start("random initialisation", params, loss_fn, None, note="the start of MAML's training"),
        ),
        chunk_size=4,
        protocol={
            "data": "Omniglot, 28 x 28, Lanczos, strokes 1 on 0, each class of a task turned by a random multiple "
            "of 90 degrees; paper split, 1100 / 100 / 423 characters"
            if data_dir
            else "jaxmaml.tasks.strokes, 400 / 50 / 150 characters",
            "model": "Conv-4, 64 filters, stride 2; every parameter adapted",
            "normalisation": "batch statistics, transductive: a query set is normalised by itself",
            "training": f"1 inner step of size {STEP_SIZE} ({FIRST_ORDER_STEP_SIZE} in first order) on mean "
            "cross-entropy, 1 query a class, 32 tasks, Adam 1e-3",
            "oracle": "none exists",
        },
        family=lambda key: families.omniglot(key, _episodes(splits.train, num_queries=1), NUM_WAYS),
    )


def _episodes(classes: jaxmaml.tasks.ImageClasses, num_queries: int):
    return jaxmaml.tasks.image_episodes(
        classes.images, num_ways=NUM_WAYS, num_shots=1, num_queries=num_queries, rotate=True
    )
