"""Implicit MAML: against a dense solve, against differentiating a long inner loop, and where it cannot work."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import family, problems

ROOT = np.random.default_rng(0).normal(size=(4, 4))
HESSIAN = ROOT @ ROOT.T / 4 + 0.1 * np.eye(4)
CENTRES = np.random.default_rng(1).normal(size=(2, 3, 4))


def loss_fn(params, centre):
    away = params["theta"] - centre
    return 0.5 * away @ jnp.asarray(HESSIAN) @ away


def meta_gradient(derivative, num_inner_steps=5, loss_fn=loss_fn):
    learner = problems.maml(loss_fn, optax.sgd(0.1), num_inner_steps, derivative=derivative)
    state = learner.init({"theta": jnp.arange(4.0)})
    after, info = jax.jit(learner.update)(state, jaxmaml.Task(*map(jnp.asarray, CENTRES)))
    return np.asarray(state.params["theta"] - after.params["theta"]), info


@pytest.mark.parametrize("released", [False, True])
def test_a_dense_solve(x64, quick_compiles, released):
    """The paper's system, and that of its released code, wherever the inner loop stopped."""
    other = {"damping": 1.0, "shift": 10.0} if released else {}
    derivative = jaxmaml.Implicit(strength=2.0, max_solver_steps=50, tolerance=1e-12, **other)
    ours, info = meta_gradient(derivative)
    expected = np.zeros(4)
    for support, query in zip(*CENTRES, strict=True):
        theta = phi = np.arange(4.0)
        for _ in range(5):
            phi = phi - 0.1 * (HESSIAN @ (phi - support) + 2.0 * (phi - theta))
        system = 2.0 * np.eye(4) + HESSIAN / 12.0 if released else np.eye(4) + HESSIAN / 2.0
        right = HESSIAN @ (phi - query)
        gradient = HESSIAN @ (phi - support) + 2.0 * (phi - theta)
        expected += np.linalg.solve(system, right) / 3
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    assert np.all(info.diagnostics.residual < 1e-10)
    np.testing.assert_allclose(info.diagnostics.stationarity[-1], np.linalg.norm(gradient), rtol=1e-9)


def proximal(strength):
    """A rule that descends the proximal problem explicitly, to be differentiated step by step."""
    return jaxmaml.InnerRule(
        init_params=lambda params: (),
        init=lambda rule_params, params: params,
        update=lambda grads, start, params, rule_params, step, **extra: (
            jax.tree.map(lambda g, p, s: -0.05 * (g + strength * (p - s)), grads, params, start),
            start,
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [{}, {"adapted": "head"}, {"adapted": "context", "start": jaxmaml.starts.zeros("context")}]
)
def test_it_is_the_limit_of_differentiating_a_long_inner_loop(x64, quick_compiles, axes):
    """For all leaves, for a head above a frozen body, and for CAVIA's context from zero."""
    params, tasks = family.regression(jnp.float64), family.regression_tasks(2, jnp.float64)
    solver = jaxmaml.Implicit(strength=3.0, max_solver_steps=200, tolerance=1e-12)
    implicit = problems.maml(family.loss_fn, optax.sgd(0.05), 2500, derivative=solver, **axes)
    unrolled = problems.maml(family.loss_fn, proximal(3.0), 2500, **axes)
    ours, theirs = (problems.meta_gradient(learner, params, tasks) for learner in (implicit, unrolled))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_memory_does_not_grow_with_inner_steps():
    def temporaries(num_inner_steps):
        learner = problems.maml(family.loss_fn, num_inner_steps=num_inner_steps, derivative=jaxmaml.Implicit())
        state = jax.eval_shape(learner.init, family.regression())
        return jax.jit(learner.update).lower(state, family.regression_tasks()).compile().memory_analysis()

    assert temporaries(100).temp_size_in_bytes < 1.05 * temporaries(10).temp_size_in_bytes + 1000


def test_an_unsolved_system_warns():
    concave = lambda params, centre: -loss_fn(params, centre)  # noqa: E731
    hard = jaxmaml.Implicit(strength=0.5, max_solver_steps=2, tolerance=1e-6)
    with pytest.warns(UserWarning, match="Conjugate gradients left a residual"):  # noqa: PT031
        meta_gradient(hard, loss_fn=concave)
        jax.effects_barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta_gradient(jaxmaml.Implicit(max_solver_steps=20))
        jax.effects_barrier()


def test_what_implicit_derivatives_cannot_do():
    make = lambda **axes: problems.maml(loss_fn, derivative=jaxmaml.Implicit(), **axes)  # noqa: E731
    with pytest.raises(ValueError, match="`objective` does not go with implicit"):
        make(objective=jaxmaml.objectives.displacement)
    with pytest.raises(ValueError, match="`first_order_steps` needs inner derivatives"):
        make(first_order_steps=3)
    with pytest.raises(ValueError, match="parameters that the outer loop has to learn, and implicit"):
        make(inner=jaxmaml.rules.learned_rates()).init({"theta": jnp.ones(4)})
    with pytest.raises(ValueError, match="`damping` must be a finite number >= 0"):
        jaxmaml.imaml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1, damping=-1.0)
    with pytest.raises(ValueError, match="`strength` must be > 0"):
        jaxmaml.imaml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1, strength=0.0)


def test_the_support_loss_is_reported_without_the_proximal_term(x64):
    _, info = meta_gradient(jaxmaml.Implicit(strength=2.0), num_inner_steps=3)
    for index, centre in enumerate(CENTRES[0]):
        theta = phi = np.arange(4.0)
        for step in range(3):
            expected = 0.5 * (phi - centre) @ HESSIAN @ (phi - centre)
            np.testing.assert_allclose(info.support_loss[index, step], expected, rtol=1e-10)
            phi = phi - 0.1 * (HESSIAN @ (phi - centre) + 2.0 * (phi - theta))
