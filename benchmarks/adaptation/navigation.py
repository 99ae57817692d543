"""2D navigation by policy gradients: returns after 0 ... 3 steps from MAML's start and from others, and the paths.

The set-up of Finn et al., 2017, section 5.3: goals uniform in the square from -0.5 to 0.5, 100 steps, 20 trajectories
for an inner policy gradient with the linear feature baseline; evaluated on 40 new trajectories.
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from flax import linen

import jaxmaml
from benchmarks.adaptation import navigation_report as report
from benchmarks.common import reporting
from jaxmaml import rl

PAPER = (-40.41, -11.68, -3.33, -3.23)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and how it is evaluated."""

    width: int = 32
    """Of both hidden layers; 100 in the paper."""
    std: float = 0.04
    """Of the actions at the start of training, when steps are at most 0.1 long; 1 in the paper."""
    rate: float = 0.015
    """The inner rate at the start of training, for the loss per step of the horizon; 0.1 in the paper."""
    learning_rate: float = 3e-3
    """Adam's, falling to zero along a cosine."""
    clip: float = 10.0
    """The largest norm of an outer gradient."""
    outer_steps: int = 900
    """500 in the paper."""
    num_tasks: int = 20
    """Goals in an outer step, as in the paper."""
    num_trajectories: int = 20
    """For an inner step and for its query, as in the paper."""
    horizon: int = 100
    test_trajectories: int = 40
    """As in the paper."""
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    """Candidates for the starts that were not trained with theirs; half of each from the second step on, too."""
    valid_goals: int = 40
    weights: tuple[float, ...] = (0.25, 0.5, 0.25)
    """Of the outer losses after each inner step of training."""

    @property
    def num_inner_steps(self) -> int:
        return len(self.weights)


RECIPE = Recipe()
ADVANTAGES = rl.advantages(discount=0.99, gae_lambda=0.95)


def policy_of(recipe: Recipe) -> tuple[rl.Policy, Any]:
    """The policy, and its initial parameters: at first it hardly moves."""
    model = linen.Sequential(
        [
            linen.Dense(recipe.width),
            jnp.tanh,
            linen.Dense(recipe.width),
            jnp.tanh,
            linen.Dense(2, kernel_init=linen.initializers.normal(0.02)),
        ]
    )
    params = {"mean": model.init(jax.random.key(0), jnp.zeros(2)), "log_std": jnp.full(2, jnp.log(recipe.std))}
    return rl.gaussian(model.apply), params


def learner_of(recipe: Recipe, rule: Any, factory: Any = jaxmaml.maml, *, test: bool = False) -> jaxmaml.MetaLearner:
    """MAML or joint training on rollouts; with `test`, the learner that is evaluated."""
    policy, _ = policy_of(recipe)
    act = functools.partial(rl.rollout, jaxmaml.tasks.navigation.environment(), policy, horizon=recipe.horizon)
    collect = jaxmaml.supports.collect
    number = recipe.test_trajectories if test else recipe.num_trajectories
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.outer_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(recipe.clip), optax.adam(schedule))
    axes: dict[str, Any] = {
        # The rollouts of all goals share the 100 steps of a scan, which chunks would repeat.
        "chunk_size": None,
        "supports": collect(act(num_trajectories=recipe.num_trajectories)),
        "queries": collect(act(num_trajectories=number)),
    }
    if factory is jaxmaml.maml:
        axes["objective"] = jaxmaml.objectives.multi_step(lambda step: jnp.array(recipe.weights))
    return factory(rl.lvc(policy, ADVANTAGES), rule, optimizer, num_inner_steps=recipe.num_inner_steps, **axes)


def compare(settings: dict[str, Any], console: rich.console.Console) -> dict[str, Any]:
    """Train each start, evaluate it on new goals, and write the result, its table and its figure.

    Args:
      settings: The configuration of `benchmarks.step_counts`.
      console: For progress and the table.
    """
    recipe = RECIPE
    if settings["outer_steps"] is not None:
        recipe = dataclasses.replace(recipe, outer_steps=settings["outer_steps"])
    num_goals, num_steps = settings["num_tasks"] or 40, settings["num_steps"] or recipe.num_inner_steps
    train_key, valid_key, test_key = jax.random.split(jax.random.key(settings["seed"]), 3)
    goals = jax.vmap(jaxmaml.tasks.navigation.goals())(jax.random.split(test_key, num_goals))
    _, params = policy_of(recipe)
    states, training = {}, {}
    for name, factory, rule in (
        ("MAML", jaxmaml.maml, rule_of(recipe, "MAML")),
        ("pretraining", jaxmaml.joint_training, optax.sgd(recipe.rate)),  # It takes no inner step.
    ):
        learner = learner_of(recipe, rule, factory)
        console.print(f"training: {name}")
        began = time.perf_counter()
        state, history = jaxmaml.fit(
            learner,
            learner.init(params),
            jaxmaml.tasks.navigation.goals(),
            train_key,
            num_steps=recipe.outer_steps,
            num_tasks=recipe.num_tasks,
            steps_per_dispatch=30,
        )
        training[name] = {
            "seconds": round(time.perf_counter() - began, 1),
            "return": reporting.numbers(history.aux["return"][:: max(1, recipe.outer_steps // 20)]),
        }
        states[name] = state if name == "MAML" else evaluated(recipe, name)[0].init(state.params)
    states["random policy"] = evaluated(recipe, "random policy")[0].init(params)
    rows: dict[str, Any] = {}
    for name, state in states.items():
        console.print(f"evaluating: {name}")
        measure = functools.partial(returns, recipe, name, num_steps=num_steps)
        row = {}
        if name != "MAML":
            row["rate"], later = best_rates(recipe, measure, state, valid_key)
            row["later_rate"] = later
            state = with_rates(state, row["rate"], later)
        curve = measure(state, goals, test_key)
        rows[name] = row | {"mean": reporting.numbers(curve.mean), "ci95": reporting.numbers(curve.ci95)}
        states[name] = state
    oracle = straight_line(np.asarray(goals.support), recipe.horizon)
    error = 1.96 * oracle.std() / np.sqrt(num_goals)
    rows["oracle"] = {"mean": [float(oracle.mean())] * (num_steps + 1), "ci95": [float(error)] * (num_steps + 1)}
    result = {
        "benchmark": "step_counts",
        "command": reporting.command_line("benchmarks.step_counts"),
        "config": {"task": "navigation", "num_tasks": num_goals, "num_steps": num_steps, "seed": settings["seed"]},
        "environment": reporting.environment(),
        "metric": "return",
        "protocol": dataclasses.asdict(recipe) | {"paper": PAPER},
        "training": training,
        "settings": {f"{num_goals} goals": rows},
    }
    file = pathlib.Path(settings["output_dir"]) / "step_counts_navigation.json"
    reporting.write_json(file, result)
    console.print(report.table(result))
    report.draw(observed_paths(recipe, states, num_steps), file.with_suffix(".png"))
    return result


def rule_of(recipe: Recipe, name: str) -> jaxmaml.InnerRule:
    """MAML's rates are learned, for each parameter and step; the others' are chosen, for the first and later steps."""
    if name == "MAML":
        return jaxmaml.rules.learned_rates(recipe.rate, per="parameter", num_steps=recipe.num_inner_steps)
    return jaxmaml.rules.learned_rates(recipe.rate, per="scalar", num_steps=2)


def with_rates(state: jaxmaml.MetaState, first: float, later: float) -> jaxmaml.MetaState:
    return state._replace(rule_params=jnp.array([first, later], jnp.float32))


def returns(recipe: Recipe, name: str, state: jaxmaml.MetaState, goals, key, *, num_steps: int) -> jaxmaml.Curve:
    """The returns after 0 ... `num_steps` inner steps, each of new rollouts."""
    evaluation = jaxmaml.evaluate(*evaluated(recipe, name), state, goals, key, num_inner_steps=num_steps)
    return jax.device_get(evaluation.aux["return"])


@functools.cache
def evaluated(recipe: Recipe, name: str) -> tuple[jaxmaml.MetaLearner, jaxmaml.LossFn]:
    """The learner and the loss to evaluate; made once, so that they are compiled once."""
    policy, _ = policy_of(recipe)
    return learner_of(recipe, rule_of(recipe, name), test=True), rl.lvc(policy, ADVANTAGES)


def best_rates(recipe: Recipe, measure, state: jaxmaml.MetaState, key) -> tuple[float, float]:
    """The candidate with the best mean return after one step and more, on goals for validation."""
    goals = jax.vmap(jaxmaml.tasks.navigation.goals())(jax.random.split(key, recipe.valid_goals))
    candidates = [(first, later) for first in recipe.rates for later in (first, first / 2)]
    scores = [np.mean(measure(with_rates(state, *rates), goals, key).mean[1:]) for rates in candidates]
    return candidates[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]


def straight_line(goals: np.ndarray, horizon: int) -> np.ndarray:
    """The return of a policy that knows its goal, for each: as long steps as there are, until it is there."""
    position, total = np.zeros_like(goals), np.zeros(len(goals))
    for _ in range(horizon):
        position += np.clip(goals - position, -jaxmaml.tasks.navigation.STEP, jaxmaml.tasks.navigation.STEP)
        total -= np.linalg.norm(goals - position, axis=1)
    return total


def observed_paths(recipe: Recipe, states: dict[str, jaxmaml.MetaState], num_steps: int) -> report.Paths:
    """Of three trajectories to each pictured goal, after every step."""
    goals = jnp.array(report.GOALS)
    policy, _ = policy_of(recipe)
    environment = jaxmaml.tasks.navigation.environment()
    act = rl.rollout(environment, policy, num_trajectories=3, horizon=recipe.horizon)

    def of_goal(name, goal, key):
        def observe(fast_params, step, key):
            batch = act(fast_params, goal, key)
            return batch.observations, batch.mask

        learner, _ = evaluated(recipe, name)
        _, trace = learner.adapt(states[name], goal, key=key, num_inner_steps=num_steps, observe=observe)
        return trace.observed

    keys = jax.random.split(jax.random.key(1), len(goals))
    return {name: jax.device_get(jax.jit(jax.vmap(functools.partial(of_goal, name)))(goals, keys)) for name in states}
