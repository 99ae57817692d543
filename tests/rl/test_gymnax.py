"""Adapters, with the real package: `pip install -e '.[test,rl]' && pytest -m gymnax`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import rl

POINT_POLICY = rl.gaussian(lambda w, x: x @ w)
POINT_PARAMS = {"mean": jnp.full((6, 2), 0.01), "log_std": jnp.full(2, -3.0)}


def many(environment, task, num=5):
    roll = rl.rollout(environment, POINT_POLICY, num_trajectories=num, horizon=8)
    return roll(POINT_PARAMS, task, jax.random.key(0))


@pytest.mark.gymnax
def test_the_point_robot_gets_the_distance_to_the_goal_of_its_task():
    environment, goal = rl.gymnax.point_robot(dense_reward=True, center_init=True), jnp.array([0.0, 1.0])
    batch = many(environment, goal)
    positions = np.asarray(batch.observations[..., :2])
    # gymnax's reward is the distance before the step.
    np.testing.assert_allclose(batch.rewards, -np.linalg.norm(positions - np.asarray(goal), axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(positions[:, 0], np.zeros((5, 2)))
    np.testing.assert_allclose(
        positions[:, 1:], positions[:, :-1] + np.clip(batch.actions[:, :-1], -0.1, 0.1), atol=1e-6
    )
    assert not np.allclose(batch.rewards, many(environment, -goal).rewards)


@pytest.mark.gymnax
def test_the_point_robot_ends_at_its_largest_number_of_steps_and_does_not_begin_again():
    batch = many(rl.gymnax.point_robot(dense_reward=True, max_steps_in_episode=3), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(batch.mask, np.broadcast_to([1, 1, 1, 0, 0, 0, 0, 0], (5, 8)))


@pytest.mark.gymnax
def test_cartpole_is_gymnaxs_step_by_step_for_the_original_body():
    import gymnax

    original, params = gymnax.make("CartPole-v1")
    environment = rl.gymnax.cartpole()
    body = {"length": jnp.array(0.5), "masscart": jnp.array(1.0), "masspole": jnp.array(0.1)}
    state, observation = environment.reset(body, jax.random.key(0))
    theirs = state
    for action in (0, 1, 1, 0, 1):
        state, observation, reward, done = environment.step(body, state, jnp.array(action), jax.random.key(1))
        expected, theirs, *_ = original.step_env(jax.random.key(1), theirs, jnp.array(action), params)
        np.testing.assert_allclose(observation, expected, rtol=1e-5)
        assert reward == 1
        assert not done


@pytest.mark.gymnax
def test_cartpoles_body_is_the_physics_of_its_task():
    """A step from the upright pole at rest: the accelerations in closed form."""
    environment = rl.gymnax.cartpole()
    body = {"length": jnp.array(0.8), "masscart": jnp.array(2.0), "masspole": jnp.array(0.4)}
    state, _ = environment.reset(body, jax.random.key(0))
    state = jax.tree.map(jnp.zeros_like, state)
    _, seen, *_ = environment.step(body, state, jnp.array(1), jax.random.key(0))
    pushed = 10.0 / 2.4
    turned = -pushed / (0.8 * (4 / 3 - 0.4 / 2.4))
    moved = pushed - 0.4 * 0.8 * turned / 2.4
    np.testing.assert_allclose(seen, [0, 0.02 * moved, 0, 0.02 * turned], rtol=1e-5)


@pytest.mark.gymnax
def test_cartpole_ends_where_the_pole_falls_and_its_return_is_its_length():
    policy = rl.categorical(lambda w, x: x @ w)
    roll = rl.rollout(rl.gymnax.cartpole(), policy, num_trajectories=10, horizon=200)
    body = rl.gymnax.cartpole_bodies()(jax.random.key(1)).support
    batch = jax.jit(roll)(jnp.zeros((4, 2)), body, jax.random.key(0))
    lengths = np.asarray(batch.mask).sum(1)
    assert lengths.max() < 200
    np.testing.assert_array_equal(np.asarray(batch.rewards).sum(1), lengths)
    value, grads = jax.value_and_grad(rl.lvc(policy), has_aux=True)(jnp.zeros((4, 2)), batch)
    assert np.isfinite(value[0])
    assert np.isfinite(grads).all()
    assert grads.any()


@pytest.mark.gymnax
def test_a_task_of_another_form_is_refused():
    with pytest.raises(ValueError, match=r'The task of `cartpole` must be \{"length"'):
        rl.gymnax.cartpole().reset(jnp.ones(3), jax.random.key(0))


def test_without_gymnax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"CartPole-v1 needs the package gymnax.*pip install 'jaxmaml\[rl\]'"):
        rl.gymnax.cartpole()


def test_bodies_and_goals_are_drawn_from_their_ranges():
    keys = jax.random.split(jax.random.key(0), 500)
    bodies = jax.vmap(rl.gymnax.cartpole_bodies(masspole=(0.1, 0.2)))(keys).support
    for name, low, high in [("length", 0.25, 1.0), ("masscart", 0.5, 2.0), ("masspole", 0.1, 0.2)]:
        assert low <= bodies[name].min() < low + 0.05 * high
        assert high - 0.05 * high < bodies[name].max() <= high
    goals = jax.vmap(rl.gymnax.point_robot_goals(2.0))(keys).query
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 2, rtol=1e-5)
    assert goals[:, 1].min() >= 0


def test_bad_input():
    with pytest.raises(TypeError, match=r"must be one of gymnax >= 1.0, got Environment without `reset_env`"):
        rl.gymnax.adapted(rl.Environment(None, None))
    with pytest.raises(ValueError, match="`length` must be > 0"):
        rl.gymnax.cartpole_bodies(length=(0.0, 1.0))
