"""The trust-region step against closed forms, and on a small policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmaml import rl
from tests.rl import mdp

CURVATURE = jnp.array([[2.0, 0.5], [0.5, 1.0]])
SLOPE = jnp.array([3.0, -1.0])


def step(optimizer, params, value_fn, kl_fn):
    grads = jax.grad(value_fn)(params)
    updates, state = optimizer.update(grads, optimizer.init(params), params, value_fn=value_fn, kl_fn=kl_fn)
    return optax.apply_updates(params, updates), state


@pytest.mark.usefixtures("x64")
def test_a_linear_value_under_a_quadratic_divergence():
    """The optimum is at `-sqrt(2 d / (g^T H^-1 g)) H^-1 g`, where the divergence is `d`."""
    params = {"a": jnp.array([0.3]), "b": jnp.array([-0.2])}
    flat = lambda p: jnp.concatenate([p["a"] - 0.3, p["b"] + 0.2])  # noqa: E731
    optimizer = rl.trust_region(max_kl=0.02, damping=0.0)
    new, state = jax.jit(
        lambda p: step(optimizer, p, lambda q: SLOPE @ flat(q), lambda q: flat(q) @ CURVATURE @ flat(q) / 2)
    )(params)
    natural = np.linalg.solve(CURVATURE, SLOPE)
    expected = -np.sqrt(2 * 0.02 / (SLOPE @ natural)) * natural
    np.testing.assert_allclose(flat(new), expected, rtol=1e-6)
    # The largest step may be refused for rounding: then it is the next one.
    assert state.fraction == 1
    np.testing.assert_allclose(state.kl, 0.02, rtol=1e-6)


def test_it_backtracks_until_both_conditions_hold():
    """The divergence grows faster than its curvature at 0 tells, and the value rises again beyond 0.5."""
    kl_fn = lambda p: p**2 / 2 + p**4  # noqa: E731
    value_fn = lambda p: (p + 0.5) ** 2  # noqa: E731
    for max_kl, bound in [(0.5, None), (8.0, 1.0)]:
        optimizer = rl.trust_region(max_kl, shrink=0.9, damping=0.0, max_trials=50)
        new, state = step(optimizer, jnp.zeros(()), value_fn, kl_fn)
        largest = np.sqrt(2 * max_kl)
        allowed = [
            f for f in 0.9 ** np.arange(50) if kl_fn(f * largest) <= max_kl and (bound is None or f * largest < bound)
        ]
        np.testing.assert_allclose(state.fraction, allowed[0], rtol=1e-5)
        np.testing.assert_allclose(new, -allowed[0] * largest, rtol=1e-5)
        assert 0 < state.fraction < 1


@pytest.mark.parametrize(
    ("value_fn", "kl_fn"),
    [
        (lambda p: jnp.where(p == 0, 3.0 * p, 1.0), lambda p: p**2 / 2),  # nothing is better
        (lambda p: 3.0 * p, lambda p: jnp.where(p == 0, p**2 / 2, jnp.nan)),  # nothing is known to be near
        (lambda p: jnp.where(p == 0, 3.0 * p, jnp.nan), lambda p: p**2 / 2),
        (lambda p: p**2, lambda p: p**2 / 2),  # a gradient of zero
        (lambda p: 3.0 * p, lambda p: 0.0 * p),  # no curvature
    ],
)
def test_without_an_acceptable_step_nothing_changes(value_fn, kl_fn):
    new, state = step(rl.trust_region(0.01, damping=0.0), jnp.zeros(()), value_fn, kl_fn)
    assert new == 0
    assert state.fraction == 0


@pytest.mark.usefixtures("x64")
def test_steps_of_a_small_policy_improve_the_exact_return_within_the_region():
    optimizer = rl.trust_region(max_kl=0.01)

    @jax.jit
    def improved(logits):
        batch = mdp.trajectories(logits)
        loss_fn = rl.lvc(mdp.POLICY, rl.advantages(discount=1.0, baseline=None, standardize=False))
        return step(optimizer, logits, lambda p: loss_fn(p, batch)[0], lambda p: loss_fn(p, batch)[1]["kl"])

    logits, returns = jnp.asarray(mdp.LOGITS), []
    for _ in range(12):
        returns.append(float(mdp.expected_return(logits)))
        logits, state = improved(logits)
        assert 0 < state.kl <= 0.01
    assert (np.diff(returns) > 0).all()
    assert returns[-1] > returns[0] + 1


def test_the_dtype_of_the_parameters_stays():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    total = lambda p: jnp.sum(p["a"].astype(jnp.float32) + p["b"])  # noqa: E731
    square = lambda p: jnp.sum((p["a"].astype(jnp.float32) - 1) ** 2 + (p["b"] - 1) ** 2)  # noqa: E731
    new, _ = step(rl.trust_region(0.5), params, total, square)
    assert jax.tree.map(lambda p: p.dtype, new) == jax.tree.map(lambda p: p.dtype, params)
    assert (new["b"] < 1).all()


def test_bad_input():
    optimizer, params = rl.trust_region(), jnp.zeros(2)
    with pytest.raises(TypeError, match="`trust_region` needs `kl_fn`, got None"):
        optimizer.update(params, optimizer.init(params), params, value_fn=jnp.sum)
    with pytest.raises(TypeError, match="`trust_region` needs `params`, got None"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(ValueError, match="`shrink` must be < 1, got 1"):
        rl.trust_region(shrink=1.0)
    with pytest.raises(ValueError, match="`max_kl` must be > 0, got 0"):
        rl.trust_region(0.0)
