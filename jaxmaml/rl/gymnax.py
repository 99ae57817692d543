"""Environments of the package gymnax, as environments with a task: `pip install 'jaxmaml[rl]'`.

gymnax's `reset` draws what we call the task, and its `step` begins again by itself where a trajectory ends. Here the
task is an argument, and a trajectory ends once. Its requirements exclude JAX 0.12 and newer.
"""

import importlib
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.rl.rollouts import Environment
from jaxmaml.types import Task


def adapted(
    environment: Any,
    params: Any = None,
    *,
    params_of: Callable[[Any, Any], Any] | None = None,
    state_of: Callable[[Any, Any], Any] | None = None,
) -> Environment:
    """Build an `Environment` from one of gymnax.

    Args:
      environment: Such as the first result of `gymnax.make`.
      params: Such as its second; the environment's defaults otherwise.
      params_of: `(task, params) -> params`, for a task that changes the parameters.
      state_of: `(task, state) -> state`, for a task that is part of the state; called after each reset.
    Returns:
      An environment that ends where gymnax's terminates or has reached its largest number of steps.
    Raises:
      TypeError: If `environment` has no `step_env` and `reset_env`.
    """
    for name in ("reset_env", "step_env", "observe", "is_truncated", "default_params"):
        if not hasattr(environment, name):
            raise TypeError(
                f"`environment` must be one of gymnax >= 1.0, got {type(environment).__name__} without `{name}`."
            )
    defaults = environment.default_params if params is None else params

    def of(task: Any) -> Any:
        return defaults if params_of is None else params_of(task, defaults)

    def reset(task: Any, key: chex.PRNGKey):
        reset_key, observe_key = jax.random.split(key)
        observation, state = environment.reset_env(reset_key, of(task))
        if state_of is not None:
            state = state_of(task, state)
            observation = environment.observe(observe_key, state, None, of(task))
        return state, observation

    def step(task: Any, state: Any, action: Any, key: chex.PRNGKey):
        # `step` would reset, with a task of its own.
        observation, state, reward, ended, _ = environment.step_env(key, state, action, of(task))
        return state, observation, jnp.asarray(reward, jnp.float32), ended | environment.is_truncated(state, of(task))

    return Environment(reset, step)


def point_robot(**params: Any) -> Environment:
    """Build gymnax's `PointRobot-misc`, whose task is the goal `[2]`: a point in the plane that does not see its goal.

    The observation `[6]` is the position, the last reward and action, and the time. An action `[2]` is clipped to
    [-0.1, 0.1].

    Args:
      **params: Fields of gymnax's parameters, such as `dense_reward=True` for the negative distance as the reward
        (otherwise 1 within 0.2 of the goal, and 0), and `center_init=True` to start at the origin.
    Raises:
      ImportError: Without gymnax.
    References:
      Dorfman et al., 2021, https://openreview.net/forum?id=IBdEfhLveS
    """
    environment, defaults = _make("PointRobot-misc")
    return adapted(
        environment, defaults.replace(**params), state_of=lambda goal, state: state.replace(goal=jnp.asarray(goal))
    )


def point_robot_goals(radius: float = 1.0) -> Callable[[chex.PRNGKey], Task]:
    """Build the sampler of the point robot's goals, uniform on the upper half of a circle: `key -> Task(goal, goal)`.

    Args:
      radius: > 0.
    Example:
      >>> import jax, jaxmaml
      >>> jaxmaml.rl.gymnax.point_robot_goals()(jax.random.key(0)).support.shape
      (2,)
    """
    checks.positive("radius", radius)

    def sample(key: chex.PRNGKey) -> Task:
        angle = jax.random.uniform(key, maxval=jnp.pi)
        goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return Task(goal, goal)

    return sample


def cartpole(**params: Any) -> Environment:
    """Build gymnax's `CartPole-v1`, whose task is `{"length": half the pole's, "masscart": ..., "masspole": ...}`.

    The observation is `[4]`, and an action 0 or 1. The derived parameters, total mass and the pole's mass times length,
    follow the task.

    Args:
      **params: Other fields of gymnax's parameters, such as `force_mag=10.0`.
    Raises:
      ImportError: Without gymnax.
    """
    environment, defaults = _make("CartPole-v1")

    def params_of(body: dict[str, jax.Array], params: Any) -> Any:
        if not isinstance(body, dict) or {*body} != {"length", "masscart", "masspole"}:
            raise ValueError(
                'The task of `cartpole` must be {"length": ..., "masscart": ..., "masspole": ...}, got '
                f"{jax.tree.structure(body)}."
            )
        total, moment = body["masscart"] + body["masspole"], body["masspole"] * body["length"]
        return params.replace(**body, total_mass=total, polemass_length=moment)

    return adapted(environment, defaults.replace(**params), params_of=params_of)


def cartpole_bodies(
    length: tuple[float, float] = (0.25, 1.0),
    masscart: tuple[float, float] = (0.5, 2.0),
    masspole: tuple[float, float] = (0.05, 0.5),
) -> Callable[[chex.PRNGKey], Task]:
    """Build the sampler of CartPole's lengths and masses, uniform in the ranges: `key -> Task(body, body)`.

    Args:
      length: Of half the pole, in metres; 0.5 in the original.
      masscart: In kilograms; 1 in the original.
      masspole: In kilograms; 0.1 in the original.
    Raises:
      ValueError: If a range is not two increasing numbers > 0.
    Example:
      >>> import jax, jaxmaml
      >>> sorted(jaxmaml.rl.gymnax.cartpole_bodies()(jax.random.key(0)).support)
      ['length', 'masscart', 'masspole']
    """
    ranges = {"length": length, "masscart": masscart, "masspole": masspole}
    for name, (low, high) in ranges.items():
        checks.positive(name, low)
        if high < low:
            raise ValueError(f"`{name}` must be (low, high), got {(low, high)}.")

    def sample(key: chex.PRNGKey) -> Task:
        keys = jax.random.split(key, len(ranges))
        body = {
            name: jax.random.uniform(own, minval=low, maxval=high)
            for own, (name, (low, high)) in zip(keys, ranges.items(), strict=True)
        }
        return Task(body, body)

    return sample


def _make(name: str) -> tuple[Any, Any]:
    try:
        package = importlib.import_module("gymnax")
    except ImportError as error:
        raise ImportError(
            f"{name} needs the package gymnax, and importing it failed ({error}). It needs a JAX older than 0.12: "
            "pip install 'jaxmaml[rl]'."
        ) from error
    return package.make(name)
