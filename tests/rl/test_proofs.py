"""What each surrogate keeps of the meta-gradient, on a process whose trajectories are all enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import rl
from tests.rl import mdp

RATE = 0.7
EXACT = {"baseline": None, "standardize": False}

pytestmark = pytest.mark.usefixtures("x64")


def undiscounted(surrogate):
    return surrogate(mdp.POLICY, rl.advantages(discount=1.0, **EXACT))


def adapted(loss_fn, logits, num_steps, recorded=mdp.trajectories):
    for _ in range(num_steps):
        grads = jax.grad(lambda at, batch: loss_fn(at, batch)[0])(logits, recorded(logits))
        logits = logits - RATE * grads
    return logits


def meta_gradient(loss_fn, num_steps):
    """That of plain MAML, each stage with all trajectories of its own policy."""

    def meta_loss(logits):
        there = adapted(loss_fn, logits, num_steps)
        return loss_fn(there, mdp.trajectories(there))[0]

    return jax.jit(jax.grad(meta_loss))(jnp.asarray(mdp.LOGITS))


def exact_meta_gradient(num_steps, discount=1.0):
    def loss(logits):
        return -mdp.expected_return(logits, discount) / mdp.HORIZON

    def meta_loss(logits):
        for _ in range(num_steps):
            logits = logits - RATE * jax.grad(loss)(logits)
        return loss(logits)

    return jax.jit(jax.grad(meta_loss))(jnp.asarray(mdp.LOGITS))


def hessian(loss_fn, logits=mdp.LOGITS):
    """Of the return, as the surrogate has it: `[4, 4]`."""
    batch = mdp.trajectories(logits)
    flat = jnp.asarray(logits).reshape(-1)
    return -mdp.HORIZON * jax.jit(jax.hessian(lambda at: loss_fn(at.reshape(2, 2), batch)[0]))(flat)


def test_the_enumeration_is_complete():
    batch = mdp.trajectories(jnp.asarray(mdp.LOGITS))
    np.testing.assert_allclose(np.sum(batch.weights), 1, atol=1e-12)
    np.testing.assert_allclose(rl.mean_return(batch), mdp.expected_return(mdp.LOGITS), atol=1e-12)


@pytest.mark.parametrize("surrogate", [rl.reinforce, rl.lvc, rl.dice, rl.clipped])
def test_every_surrogate_has_the_exact_policy_gradient(surrogate):
    logits = jnp.asarray(mdp.LOGITS)
    grads = jax.grad(lambda at: undiscounted(surrogate)(at, mdp.trajectories(logits))[0])(logits)
    exact = jax.grad(mdp.expected_return)(logits)
    np.testing.assert_allclose(-mdp.HORIZON * grads, exact, atol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_dice_has_the_exact_meta_gradient(num_steps, discount):
    loss_fn = rl.dice(mdp.POLICY, rl.advantages(discount=discount, **EXACT), discount=discount)
    exact = exact_meta_gradient(num_steps, discount)
    np.testing.assert_allclose(meta_gradient(loss_fn, num_steps), exact, atol=1e-10)


def test_a_baseline_leaves_dice_exact():
    """One of the state and the time, which is no function of what is chosen later."""
    baseline = lambda batch, returns: 3.0 - batch.observations + 0.5 * jnp.arange(mdp.HORIZON)[None]  # noqa: E731
    advantages = rl.advantages(discount=1.0, baseline=baseline, standardize=False)
    found = meta_gradient(rl.dice(mdp.POLICY, advantages), 2)
    np.testing.assert_allclose(found, exact_meta_gradient(2), atol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize(("surrogate", "least"), [(rl.reinforce, 0.05), (rl.lvc, 0.01)])
def test_the_others_have_not(surrogate, least, num_steps):
    found, exact = meta_gradient(undiscounted(surrogate), num_steps), exact_meta_gradient(num_steps)
    assert np.linalg.norm(found - exact) > least * np.linalg.norm(exact)


def test_the_terms_that_each_surrogate_keeps():
    h1, h2, h12 = mdp.hessian_terms(mdp.LOGITS)
    exact = jax.hessian(lambda at: mdp.expected_return(at.reshape(2, 2)))(jnp.asarray(mdp.LOGITS).reshape(-1))
    np.testing.assert_allclose(h1 + h2 + h12 + h12.T, exact, atol=1e-10)
    np.testing.assert_allclose(hessian(undiscounted(rl.dice)), h1 + h2 + h12 + h12.T, atol=1e-10)
    np.testing.assert_allclose(hessian(undiscounted(rl.lvc)), h1 + h2, atol=1e-10)
    np.testing.assert_allclose(hessian(undiscounted(rl.clipped)), h1 + h2, atol=1e-10)
    np.testing.assert_allclose(hessian(undiscounted(rl.reinforce)), h2, atol=1e-10)
    assert min(np.abs(h1).max(), np.abs(h2).max(), np.abs(h12 + h12.T).max()) > 0.05


def test_the_third_derivative_of_dice_is_exact():
    def third(function):
        return jax.jit(jax.jacobian(jax.hessian(function)))(jnp.asarray(mdp.LOGITS))

    batch = mdp.trajectories(jnp.asarray(mdp.LOGITS))
    found = third(lambda at: undiscounted(rl.dice)(at, batch)[0])
    np.testing.assert_allclose(-mdp.HORIZON * found, third(mdp.expected_return), atol=1e-10)


def test_away_from_the_recording_policy_dice_is_the_importance_weighted_return():
    recorded, other = jnp.asarray(mdp.LOGITS), jnp.asarray([[-0.4, 0.2], [0.9, 0.0]])
    loss, _ = undiscounted(rl.dice)(other, mdp.trajectories(recorded))
    gained = mdp.expected_return(other) - mdp.expected_return(recorded)
    np.testing.assert_allclose(-mdp.HORIZON * loss, gained, atol=1e-10)


def test_the_sampled_hessian_agrees_within_its_standard_error():
    logits = jnp.asarray(mdp.LOGITS)
    roll = rl.rollout(mdp.environment(), mdp.POLICY, num_trajectories=4000, horizon=mdp.HORIZON)
    batch = jax.jit(roll)(logits, (), jax.random.key(0))

    def hessians(loss_fn):
        """One for each trajectory, `[4000, 4, 4]`."""

        def of_one(one):
            one = jax.tree.map(lambda leaf: leaf[None], one)
            return jax.hessian(lambda at: loss_fn(at.reshape(2, 2), one)[0])(logits.reshape(-1))

        return -mdp.HORIZON * np.asarray(jax.jit(jax.vmap(of_one))(batch))

    def errors(sampled, exact):
        return np.abs(sampled.mean(0) - exact) / (sampled.std(0) / np.sqrt(len(sampled)) + 1e-12)

    h1, h2, h12 = mdp.hessian_terms(mdp.LOGITS)
    exact = h1 + h2 + h12 + h12.T
    dice, lvc = hessians(undiscounted(rl.dice)), hessians(undiscounted(rl.lvc))
    assert errors(dice, exact).max() < 4
    assert errors(lvc, h1 + h2).max() < 4
    assert errors(lvc, exact).max() > 10
    assert dice.std(0).max() > 1.2 * lvc.std(0).max()


BANDIT = {"logits": jnp.array([-0.5, 0.5]), "rewards": jnp.array([1.0, 0.0]), "rate": 2.0}


def bandit_return(logits):
    return jax.nn.softmax(logits) @ BANDIT["rewards"]


def bandit_batch(arms, recorded):
    """One step in each trajectory."""
    distribution = jax.lax.stop_gradient(jax.nn.log_softmax(jnp.broadcast_to(recorded, (len(arms), 1, 2))))
    return rl.Trajectories(
        observations=jnp.zeros((len(arms), 1), int),
        actions=arms[:, None],
        rewards=BANDIT["rewards"][arms][:, None],
        log_probs=jnp.take_along_axis(distribution, arms[:, None, None], axis=-1)[..., 0],
        distribution=distribution,
        mask=jnp.ones((len(arms), 1)),
    )


def bandit_sets(num_samples):
    return jnp.array(list(itertools.product((0, 1), repeat=num_samples)))


def bandit_probability(logits, arms):
    return jnp.exp(jnp.sum(jax.nn.log_softmax(logits)[arms]))


def bandit_expectations(num_samples, surrogate):
    """The meta-gradient and its score term, in expectation over all `2^n` sets of samples of the inner step.

    The outer return is exact: all of the bias comes from few samples in the inner step.
    """
    policy = rl.categorical(lambda logits, observations: jnp.broadcast_to(logits, (*observations.shape, 2)))
    loss_fn = surrogate(policy, rl.advantages(discount=1.0, **EXACT))
    logits = BANDIT["logits"].astype(float)

    def of_set(arms):
        def after(at):
            grads = jax.grad(lambda at: loss_fn(at, bandit_batch(arms, logits))[0])(at)
            return bandit_return(at - BANDIT["rate"] * grads)

        value, grads = jax.value_and_grad(after)(logits)
        probability, slope = jax.value_and_grad(bandit_probability)(logits, arms)
        return probability * grads, slope * value

    return [jnp.sum(part, axis=0) for part in jax.jit(jax.vmap(of_set))(bandit_sets(num_samples))]


def test_with_few_samples_the_meta_gradient_of_dice_is_biased():
    """DiCE's inner Hessian is unbiased, and the meta-gradient is no linear function of inner step and Hessian."""
    logits = BANDIT["logits"].astype(float)
    exact = jax.grad(lambda at: bandit_return(at + BANDIT["rate"] * jax.grad(bandit_return)(at)))(logits)
    found = {n: bandit_expectations(n, rl.dice)[0] for n in (1, 2, 5, 10)}
    bias = {n: float(np.linalg.norm(g - exact) / np.linalg.norm(exact)) for n, g in found.items()}
    np.testing.assert_allclose([bias[1], bias[2], bias[5]], [0.365, 0.168, 0.069], atol=1e-3)
    assert bias[10] < 0.6 * bias[5]


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_the_return_after_a_step_on_few_samples_needs_the_score_of_the_samples(num_samples):
    """The gradient of the expected return after a step on `n` samples, by the log derivative of their probability."""
    logits, rate = BANDIT["logits"].astype(float), BANDIT["rate"]

    def expected(at):
        def of_set(arms):
            step = jax.grad(lambda at: jnp.mean(jax.nn.log_softmax(at)[arms] * BANDIT["rewards"][arms]))(at)
            return bandit_probability(at, arms) * bandit_return(at + rate * step)

        return jnp.sum(jax.vmap(of_set)(bandit_sets(num_samples)))

    gradient, score = bandit_expectations(num_samples, rl.reinforce)
    exact = jax.jit(jax.grad(expected))(logits)
    np.testing.assert_allclose(gradient + score, exact, atol=1e-10)
    assert np.linalg.norm(gradient - exact) > 0.3 * np.linalg.norm(exact)
