"""Bayesian MAML: its particles against a computation by hand, its chaser against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import family, problems

pytestmark = pytest.mark.usefixtures("quick_compiles")


def svgd_by_hand(particles, gradients, step_size, repulsion):
    number = len(particles)
    squares = [[np.sum((a - b) ** 2) for b in particles] for a in particles]
    bandwidth = np.median(squares) / np.log(number + 1)
    moved = []
    for m in range(number):
        direction = np.zeros_like(particles[m])
        for j in range(number):
            kernel = np.exp(-squares[j][m] / bandwidth)
            kernel_gradient = -2 / bandwidth * (particles[j] - particles[m]) * kernel
            direction += kernel * gradients[j] - repulsion * kernel_gradient
        moved.append(-step_size / number * direction)
    return np.stack(moved)


def test_svgd_by_hand(x64):
    rng = np.random.default_rng(0)
    particles, gradients = rng.normal(size=(2, 5, 7))
    rows = (particles, gradients / 5)
    trees = [{"a": jnp.asarray(x[:, :4].reshape(5, 2, 2)), "b": jnp.asarray(x[:, 4:])} for x in rows]
    updates, _ = jaxmaml.rules.svgd(0.3, repulsion=0.7).update(trees[1], (), trees[0], (), 0)
    ours = np.concatenate([updates["a"].reshape(5, 4), updates["b"]], axis=1)
    np.testing.assert_allclose(ours, svgd_by_hand(particles, gradients, 0.3, 0.7), rtol=1e-10)


def test_each_particle_is_clipped_alone(x64):
    rng = np.random.default_rng(1)
    particles, gradients = rng.normal(size=(2, 4, 3))
    gradients[0] *= 100
    clipped = gradients * np.minimum(1, 2 / np.linalg.norm(gradients, axis=1))[:, None]
    rule = jaxmaml.rules.svgd(0.3, repulsion=0.7, transform=jaxmaml.clip_by_global_norm(2.0))
    start = jnp.asarray(particles)
    updates, _ = rule.update(jnp.asarray(gradients / 4), rule.init((), start), start, (), 0)
    np.testing.assert_allclose(updates, svgd_by_hand(particles, clipped, 0.3, 0.7), rtol=1e-10)


def test_particles_far_from_zero_are_as_precise_as_others():
    """Only distances count; products of coordinates of 10,000 would drown those of a thousandth."""
    rule = jaxmaml.rules.svgd(0.3)
    near = jnp.asarray(np.random.default_rng(2).integers(-8, 8, size=(5, 6)) / 8.0, jnp.float32)
    gradients = jnp.zeros((5, 6))
    updates, expected = (rule.update(gradients, (), near + offset, (), 0)[0] for offset in (8192.0, 0.0))
    np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-5)


def test_one_particle_is_gradient_descent(x64):
    rule = jaxmaml.rules.svgd(0.3)
    updates, _ = rule.update(jnp.array([[1.0, 2.0]]), (), jnp.array([[5.0, -3.0]]), (), 0)
    np.testing.assert_allclose(updates, [[-0.3, -0.6]], rtol=1e-12)


def test_particles_fall_apart_and_find_the_spread_of_a_gaussian():
    """Samples of N(0, 1), from its score alone: SVGD's own claim."""
    rule = jaxmaml.rules.svgd(0.5)
    particles = jax.random.normal(jax.random.key(0), (50, 1)) * 0.01 + 3.0

    def step(particles, _):
        updates, _ = rule.update(particles / 50, (), particles, (), 0)
        return particles + updates, None

    particles, _ = jax.jit(lambda p: jax.lax.scan(step, p, length=2000))(particles)
    np.testing.assert_allclose(np.mean(particles), 0.0, atol=0.05)
    np.testing.assert_allclose(np.std(particles), 1.0, atol=0.1)


@pytest.mark.slow
def test_the_chaser_is_its_definition(x64):
    """Without repulsion and with one particle, Bayesian MAML is gradient descent that chases itself."""
    params = jax.tree.map(lambda leaf: leaf[None], family.regression(jnp.float64))
    tasks = family.regression_tasks(2, jnp.float64)
    learner = jaxmaml.bayesian_maml(family.loss_fn, 0.05, optax.sgd(1.0), num_inner_steps=2, num_leader_steps=3)

    def descend(params, batch, count):
        for _ in range(count):
            grads = jax.grad(family.loss_fn)(params, batch)
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
        return params

    def objective(params):
        total = 0.0
        for index in range(2):
            support, query = jax.tree.map(lambda leaf, index=index: leaf[index], tasks)
            chaser = descend(params, support, 2)
            leader = descend(chaser, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query), 3)
            away = jax.tree.map(lambda a, b: jnp.sum((a - jax.lax.stop_gradient(b)) ** 2), chaser, leader)
            total += 0.5 * sum(jax.tree.leaves(away)) / 2
        return total

    expected = problems.flat(jax.jit(jax.grad(objective))(jax.tree.map(lambda leaf: leaf[0], params)))
    np.testing.assert_allclose(problems.meta_gradient(learner, params, tasks), expected, rtol=1e-8, atol=1e-12)


def test_particles_need_one_leading_axis():
    learner = jaxmaml.bayesian_maml(family.loss_fn, 0.05, optax.sgd(1.0), num_inner_steps=1)
    state = learner.init(family.regression())
    with pytest.raises(ValueError, match="An ensemble of parameters needs leaves with one"):
        learner.update(state, family.regression_tasks())
