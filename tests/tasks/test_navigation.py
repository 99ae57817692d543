"""The point of the MAML paper, and the numbers that tell which reward its table has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import tasks

ENVIRONMENT = tasks.navigation.environment()


def test_goals_are_uniform_in_the_square():
    drawn = jax.vmap(tasks.navigation.goals())(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_array_equal(drawn.support, drawn.query)
    goals = np.asarray(drawn.support)
    assert np.abs(goals).max() <= 0.5
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(goals.var(0), 1 / 12, rtol=0.03)
    # What standing still for 100 steps costs, by the distance and by its square.
    distance = np.linalg.norm(goals, axis=1)
    assert -100 * distance.mean() == pytest.approx(-38.3, abs=0.5)
    assert -100 * (distance**2).mean() == pytest.approx(-16.7, abs=0.5)


def test_a_step_is_clipped_and_its_reward_is_the_distance_left():
    goal, key = jnp.array([0.3, -0.4]), jax.random.key(0)
    position, observation = ENVIRONMENT.reset(goal, key)
    np.testing.assert_array_equal(observation, [0, 0])
    position, observation, reward, done = ENVIRONMENT.step(goal, position, jnp.array([0.05, -7.0]), key)
    np.testing.assert_allclose(position, [0.05, -0.1], rtol=1e-6)
    np.testing.assert_array_equal(observation, position)
    assert reward == pytest.approx(-np.hypot(0.25, 0.3), rel=1e-5)
    assert not done


@pytest.mark.parametrize(("left", "expected"), [((0.009, -0.009), True), ((0.011, 0.0), False), ((0.0, -0.011), False)])
def test_it_ends_where_both_coordinates_are_near(left, expected):
    goal = jnp.array([0.2, 0.2])
    *_, done = ENVIRONMENT.step(goal, goal + jnp.array(left), jnp.zeros(2), jax.random.key(0))
    assert bool(done) is expected


def test_bad_input():
    with pytest.raises(ValueError, match=r"`goal` must have shape \(2,\), got \(3,\)"):
        ENVIRONMENT.reset(jnp.zeros(3), jax.random.key(0))
    with pytest.raises(ValueError, match="`largest` must be > 0"):
        tasks.navigation.goals(0.0)
