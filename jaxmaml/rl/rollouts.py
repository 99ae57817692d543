"""Environments as pure functions, and trajectories recorded in them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.rl.policies import Policy
from jaxmaml.types import PyTree


class Environment(NamedTuple):
    """A Markov decision process of which the task is an argument: two pure functions.

    Attributes:
      reset: `(task, key) -> (state, observation)`.
      step: `(task, state, action, key) -> (state, observation, reward, done)`, the reward a floating-point scalar and
        `done` whether this step ends the trajectory.
    """

    reset: Callable[[Any, chex.PRNGKey], tuple[Any, Any]]
    step: Callable[[Any, Any, Any, chex.PRNGKey], tuple[Any, Any, jax.Array, jax.Array]]


class Trajectories(NamedTuple):
    """Recorded trajectories: the batch of the surrogate losses. All leaves are constants for derivatives.

    Attributes:
      observations: What each action was chosen on, leaves `[num_trajectories, horizon, ...]`.
      actions: `[num_trajectories, horizon, ...]`.
      rewards: `[num_trajectories, horizon]`; zero after the end of a trajectory.
      log_probs: Those of the actions under the policy that chose them, `[num_trajectories, horizon]`, in nats.
      distribution: The distributions of that policy, leaves `[num_trajectories, horizon, ...]`.
      mask: 1 for the steps up to and with the one that ends a trajectory, and 0 afterwards;
        `[num_trajectories, horizon]`.
      weights: How much each trajectory counts, `[num_trajectories]`; `None` for all the same.
    """

    observations: Any
    actions: jax.Array
    rewards: jax.Array
    log_probs: jax.Array
    distribution: Any
    mask: jax.Array
    weights: jax.Array | None = None


#: `(params, task, key) -> Trajectories`.
Rollout = Callable[[PyTree, Any, chex.PRNGKey], Trajectories]


def rollout(environment: Environment, policy: Policy, *, num_trajectories: int, horizon: int) -> Rollout:
    """Build the function that runs a policy in an environment, for `jaxmaml.supports.collect` and `on_policy`.

    The steps run under one `jax.lax.scan`, the trajectories under `jax.vmap`. No gradient flows through what is
    recorded. After the end of a trajectory its state stays as it is.

    Trajectory `i` draws from `split(key, num_trajectories)[i]`, which is split into a key for `reset` and one for each
    step, split into one for the action and one for the environment.

    Args:
      environment: Where the policy acts.
      policy: What acts.
      num_trajectories: The number of independent trajectories; 20 in the MAML paper.
      horizon: The largest number of steps of each; 100 or 200 in the MAML paper.
    Returns:
      `(params, task, key) -> Trajectories`.
    Raises:
      TypeError: If `environment` or `policy` is something else.
      ValueError: If a number is < 1; in use: if a reward is not a floating-point scalar.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> navigation = jaxmaml.tasks.navigation
      >>> policy = jaxmaml.rl.gaussian(lambda w, x: x @ w)
      >>> act = jaxmaml.rl.rollout(navigation.environment(), policy, num_trajectories=4, horizon=10)
      >>> params = {"mean": jnp.zeros((2, 2)), "log_std": jnp.zeros(2)}
      >>> act(params, jnp.array([0.3, 0.1]), jax.random.key(0)).observations.shape
      (4, 10, 2)
    """
    for name, value, kind in (("environment", environment, Environment), ("policy", policy, Policy)):
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` must be a jaxmaml.rl.{kind.__name__}, got {type(value).__name__}.")
    checks.positive_int("num_trajectories", num_trajectories)
    checks.positive_int("horizon", horizon)

    def one(params: PyTree, task: Any, key: chex.PRNGKey) -> Trajectories:
        reset_key, key = jax.random.split(key)
        state, observation = environment.reset(task, reset_key)

        def step(carry, key):
            state, observation, running = carry
            action_key, step_key = jax.random.split(key)
            distribution = policy.distribution(params, observation)
            action = policy.sample(distribution, action_key)
            new_state, new_observation, reward, done = environment.step(task, state, action, step_key)
            if jnp.shape(reward) or not jnp.issubdtype(jnp.result_type(reward), jnp.floating):
                raise ValueError(
                    f"`environment.step` must return a floating-point scalar reward, got {jnp.result_type(reward)} "
                    f"of shape {jnp.shape(reward)}."
                )
            mask = running.astype(reward.dtype)
            record = Trajectories(
                observations=observation,
                actions=action,
                # Not a product: a reward after the end may be infinite.
                rewards=jnp.where(running, reward, 0),
                log_probs=policy.log_prob(distribution, action),
                distribution=distribution,
                mask=mask,
            )
            kept = jax.tree.map(
                lambda new, old: jnp.where(running, new, old), (new_state, new_observation), (state, observation)
            )
            return (*kept, running & ~jnp.asarray(done, bool)), record

        beginning = (state, observation, jnp.ones((), bool))
        return jax.lax.scan(step, beginning, jax.random.split(key, horizon))[1]

    def run(params: PyTree, task: Any, key: chex.PRNGKey) -> Trajectories:
        keys = jax.random.split(key, num_trajectories)
        return jax.lax.stop_gradient(jax.vmap(one, in_axes=(None, None, 0))(params, task, keys))

    return run


def step_weights(trajectories: Trajectories) -> jax.Array:
    """The weight of every step, `[num_trajectories, horizon]`; those of the first steps add up to 1."""
    mask, weights = trajectories.mask, trajectories.weights
    if weights is None:
        return mask / mask.shape[0]
    if weights.shape != mask.shape[:1]:
        raise ValueError(f"`weights` must be one for each trajectory, {mask.shape[:1]}, got {weights.shape}.")
    return mask * (weights / jnp.sum(weights))[:, None]


def mean_return(trajectories: Trajectories) -> jax.Array:
    """The weighted mean over trajectories of the sum of rewards, without discount; a scalar.

    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> step = jnp.ones((4, 3))
      >>> float(jaxmaml.rl.mean_return(jaxmaml.rl.Trajectories(step, step, step, step, step, mask=step)))
      3.0
    """
    return jnp.sum(step_weights(trajectories) * trajectories.rewards)
