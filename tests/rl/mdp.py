"""A Markov decision process small enough to enumerate every trajectory with its probability."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import rl

HORIZON = 3
START = np.array([0.6, 0.4])
#: `[state, action, next state]`.
TRANSITIONS = np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
#: `[state, action]`.
REWARDS = np.array([[1.0, -0.5], [0.3, 2.0]])
#: The logits of a policy that prefers nothing in particular, `[state, action]`.
LOGITS = np.array([[0.3, -0.2], [0.1, 0.4]])
POLICY = rl.categorical(lambda logits, states: logits[states])


class Enumeration(NamedTuple):
    """All trajectories: states, actions `[64, 3]`, rewards, and the probability of what the policy does not choose."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    chance: np.ndarray


def enumerated() -> Enumeration:
    rows = []
    for states in itertools.product((0, 1), repeat=HORIZON):
        for actions in itertools.product((0, 1), repeat=HORIZON):
            moves = zip(states, actions, states[1:], strict=False)
            chance = START[states[0]] * np.prod([TRANSITIONS[move] for move in moves])
            rows.append((states, actions, [REWARDS[at] for at in zip(states, actions, strict=True)], chance))
    return Enumeration(*map(np.array, zip(*rows, strict=True)))


def trajectories(logits) -> rl.Trajectories:
    """All trajectories, as the policy records them, each with its probability as the weight."""
    every = enumerated()
    distribution = jax.lax.stop_gradient(POLICY.distribution(logits, every.states))
    log_probs = POLICY.log_prob(distribution, jnp.asarray(every.actions))
    return rl.Trajectories(
        observations=jnp.asarray(every.states),
        actions=jnp.asarray(every.actions),
        rewards=jnp.asarray(every.rewards),
        log_probs=log_probs,
        distribution=distribution,
        mask=jnp.ones(every.rewards.shape),
        weights=every.chance * jnp.exp(jnp.sum(log_probs, axis=1)),
    )


def expected_return(logits, discount=1.0):
    """By dynamic programming, from the last step to the first."""
    policy = jax.nn.softmax(logits, axis=-1)
    value = jnp.zeros(2)
    for _ in range(HORIZON):
        value = jnp.sum(policy * (REWARDS + discount * TRANSITIONS @ value), axis=-1)
    return START @ value


def environment() -> rl.Environment:
    def reset(task, key):
        state = jax.random.categorical(key, jnp.log(START))
        return state, state

    def step(task, state, action, key):
        new = jax.random.categorical(key, jnp.log(TRANSITIONS)[state, action])
        return new, new, jnp.asarray(REWARDS)[state, action], jnp.zeros((), bool)

    return rl.Environment(reset, step)


def hessian_terms(logits):
    """H1, H2 and H12 of the expected return, term by term as they are written down; each `[4, 4]`."""
    every = enumerated()

    def log_probs(flat):
        at = jax.nn.log_softmax(flat.reshape(2, 2), axis=-1)
        return at[every.states, every.actions]

    flat = jnp.asarray(logits).reshape(-1)
    first = np.asarray(jax.jacobian(log_probs)(flat))
    second = np.asarray(jax.hessian(log_probs)(flat))
    probability = every.chance * np.exp(np.asarray(log_probs(flat)).sum(1))
    to_go = every.rewards[:, ::-1].cumsum(1)[:, ::-1]
    h1, h2, h12 = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    for p, gradients, hessians, returns in zip(probability, first, second, to_go, strict=True):
        for t in range(HORIZON):
            h1 += p * np.outer(gradients[t], gradients[t]) * returns[t]
            h2 += p * hessians[t] * returns[t]
            for u in range(t + 1, HORIZON):
                h12 += p * np.outer(gradients[t], gradients[u]) * returns[u]
    return h1, h2, h12
