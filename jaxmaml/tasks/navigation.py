"""Navigation of a point in the plane, the first reinforcement learning experiment of the MAML paper."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.rl import Environment
from jaxmaml.types import Task

#: The largest change of a coordinate in one step.
STEP = 0.1
#: A trajectory ends where both coordinates are this close to the goal.
CLOSE = 0.01


def goals(largest: float = 0.5) -> Callable[[chex.PRNGKey], Task]:
    """Build the sampler of goals, uniform in the square from `-largest` to `largest`.

    Args:
      largest: > 0; 0.5 in the paper.
    Returns:
      `sample(key) -> Task`, whose support and query are both the goal `[2]`: what a rollout gets as its task.
    Raises:
      ValueError: If `largest` is not > 0.
    Example:
      >>> import jax, jaxmaml
      >>> task = jaxmaml.tasks.navigation.goals()(jax.random.key(0))
      >>> task.support.shape
      (2,)

    References:
      Finn et al., 2017, section 5.3, https://arxiv.org/abs/1703.03400
    """
    checks.positive("largest", largest)

    def sample(key: chex.PRNGKey) -> Task:
        goal = jax.random.uniform(key, (2,), minval=-largest, maxval=largest)
        return Task(goal, goal)

    return sample


def environment() -> Environment:
    """Build the environment of the paper's 2D navigation; its task is a goal `[2]`.

    The point starts at the origin and sees its position, not the goal. An action `[2]` is clipped to [-0.1, 0.1] and
    added to the position `x`. The reward is `-|x - goal|`, the Euclidean distance after the step. The paper's text says
    the squared distance; its released code has the distance, and so does its table: standing still for 100 steps costs
    38.3 by the distance and 16.7 by its square, and the table has -40.41 before adaptation. A trajectory ends where
    both coordinates are within 0.01 of the goal.

    Returns:
      An environment for `jaxmaml.rl.rollout`; `horizon=100` is the paper's.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> environment = jaxmaml.tasks.navigation.environment()
      >>> goal, key = jnp.array([0.3, 0.0]), jax.random.key(0)
      >>> position, _ = environment.reset(goal, key)
      >>> position, _, reward, done = environment.step(goal, position, jnp.array([9.0, 0.0]), key)
      >>> position.tolist(), round(float(reward), 3), bool(done)
      ([0.10000000149011612, 0.0], -0.2, False)

    References:
      Finn et al., 2017, section 5.3, https://arxiv.org/abs/1703.03400, and its code
      https://github.com/cbfinn/maml_rl (`point_env_randgoal.py`)
    """

    def reset(goal: jax.Array, key: chex.PRNGKey):
        checks.same_shape("goal", goal, jnp.zeros(2))
        return jnp.zeros_like(goal), jnp.zeros_like(goal)

    def step(goal: jax.Array, position: jax.Array, action: jax.Array, key: chex.PRNGKey):
        position = position + jnp.clip(action, -STEP, STEP)
        left = position - goal
        reward = -jnp.sqrt(jnp.sum(jnp.square(left)))
        return position, position, reward, jnp.all(jnp.abs(left) < CLOSE)

    return Environment(reset, step)
