"""Rollouts against a plain Python loop with the same keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import rl, tasks
from tests.rl import mdp

POLICY = rl.gaussian(lambda w, x: x @ w[:2] + jnp.broadcast_to(w[2], x.shape))
GOAL = jnp.array([0.11, -0.01])
# Half the way to the goal at each step, with noise of the size of what counts as arrived.
PARAMS = {
    "mean": jnp.stack([jnp.array([-0.5, 0.0]), jnp.array([0.0, -0.5]), 0.5 * GOAL]),
    "log_std": jnp.array([-4.5, -4.5]),
}


def loop(environment, policy, params, task, key, num_trajectories, horizon):
    """Lists of lists of steps, each trajectory until it ends."""
    trajectories = []
    for own in jax.random.split(key, num_trajectories):
        reset_key, steps_key = jax.random.split(own)
        state, observation = environment.reset(task, reset_key)
        steps, done = [], False
        for step_key in jax.random.split(steps_key, horizon):
            if done:
                break
            action_key, environment_key = jax.random.split(step_key)
            distribution = policy.distribution(params, observation)
            action = policy.sample(distribution, action_key)
            log_prob = policy.log_prob(distribution, action)
            new, seen, reward, done = environment.step(task, state, action, environment_key)
            steps.append((observation, action, reward, log_prob, distribution))
            state, observation = new, seen
        trajectories.append(steps)
    return trajectories


def assert_equal(batch, expected, horizon):
    lengths = [len(steps) for steps in expected]
    np.testing.assert_array_equal(batch.mask, np.arange(horizon)[None] < np.array(lengths)[:, None])
    for i, steps in enumerate(expected):
        for t, step in enumerate(steps):
            recorded = (batch.observations, batch.actions, batch.rewards, batch.log_probs, batch.distribution)
            found = jax.tree.map(lambda leaf, i=i, t=t: leaf[i, t], recorded)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, step)
        assert not batch.rewards[i, len(steps) :].any()


def test_navigation_is_that_of_a_loop_and_ends_at_the_goal():
    environment, key = tasks.navigation.environment(), jax.random.key(3)
    roll = rl.rollout(environment, POLICY, num_trajectories=8, horizon=15)
    batch = jax.jit(roll)(PARAMS, GOAL, key)
    expected = loop(environment, POLICY, PARAMS, GOAL, key, 8, 15)
    lengths = {len(steps) for steps in expected}
    assert len(lengths) > 1
    assert_equal(batch, expected, 15)


def test_a_finite_process_is_that_of_a_loop():
    key = jax.random.key(1)
    roll = rl.rollout(mdp.environment(), mdp.POLICY, num_trajectories=3, horizon=4)
    expected = loop(mdp.environment(), mdp.POLICY, jnp.asarray(mdp.LOGITS), (), key, 3, 4)
    assert_equal(roll(jnp.asarray(mdp.LOGITS), (), key), expected, 4)


def test_the_mean_return_is_the_expected_one():
    roll = rl.rollout(mdp.environment(), mdp.POLICY, num_trajectories=20_000, horizon=mdp.HORIZON)
    batch = jax.jit(roll)(jnp.asarray(mdp.LOGITS), (), jax.random.key(0))
    error = np.asarray(batch.rewards).sum(1).std() / np.sqrt(20_000)
    assert abs(rl.mean_return(batch) - mdp.expected_return(mdp.LOGITS)) < 4 * error


def test_weights_count_as_copies_do():
    roll = rl.rollout(tasks.navigation.environment(), POLICY, num_trajectories=3, horizon=6)
    batch = roll(PARAMS, GOAL, jax.random.key(0))
    twice = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 1, 2])], batch)
    weighted = batch._replace(weights=jnp.array([2.0, 1.0, 1.0]))
    other = jax.tree.map(lambda p: p + 0.1, PARAMS)
    for surrogate in (rl.reinforce, rl.lvc, rl.dice, rl.clipped):
        # The ridge of the baseline is per trajectory, so that it is left out.
        loss_fn = surrogate(POLICY, rl.advantages(baseline=None))
        of_copies, of_weights = (loss_fn(other, made) for made in (twice, weighted))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of_copies, of_weights)


def test_after_the_end_nothing_counts():
    """What an environment does after the end, even NaN, changes neither losses nor gradients."""

    def environment(after):
        def reset(task, key):
            return jnp.zeros(()), jnp.zeros(2)

        def step(task, state, action, key):
            reward = jnp.where(state >= 2, after, 1.0) + 0.1 * action[0]
            return state + 1, jnp.full(2, state), reward, state >= 1

        return rl.Environment(reset, step)

    def value(after):
        roll = rl.rollout(environment(after), POLICY, num_trajectories=4, horizon=6)
        batch = roll(PARAMS, (), jax.random.key(0))
        return jax.value_and_grad(rl.lvc(POLICY), has_aux=True)(PARAMS, batch)

    ended, poisoned = value(0.0), value(jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, ended, poisoned)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ended))


def test_no_gradient_flows_through_the_sampling():
    roll = rl.rollout(tasks.navigation.environment(), POLICY, num_trajectories=3, horizon=4)

    def total(params):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(roll(params, GOAL, jax.random.key(0))))

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(total)(PARAMS)))


def test_bad_input():
    environment = tasks.navigation.environment()
    with pytest.raises(TypeError, match=r"`environment` must be a jaxmaml.rl.Environment, got function"):
        rl.rollout(tasks.navigation.environment, POLICY, num_trajectories=3, horizon=4)
    with pytest.raises(TypeError, match=r"`policy` must be a jaxmaml.rl.Policy, got function"):
        rl.rollout(environment, rl.gaussian, num_trajectories=3, horizon=4)
    with pytest.raises(ValueError, match="`horizon` must be >= 1"):
        rl.rollout(environment, POLICY, num_trajectories=3, horizon=0)
    integer = rl.Environment(environment.reset, lambda task, state, action, key: (state, state, 1, False))
    with pytest.raises(ValueError, match=r"must return a floating-point scalar reward, got int"):
        rl.rollout(integer, POLICY, num_trajectories=3, horizon=4)(PARAMS, GOAL, jax.random.key(0))
    with pytest.raises(TypeError, match=r"The batch must be jaxmaml.rl.Trajectories, got tuple"):
        rl.lvc(POLICY)(PARAMS, (GOAL, GOAL))
    with pytest.raises(ValueError, match="`clip` must be > 0"):
        rl.clipped(POLICY, clip=0.0)
    with pytest.raises(TypeError, match=r"`policy` must be a jaxmaml.rl.Policy"):
        rl.dice(rl.advantages())
