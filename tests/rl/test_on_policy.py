"""Outer steps on recorded rollouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from jaxmaml import keys, rl, supports
from tests.rl import mdp

pytestmark = pytest.mark.usefixtures("quick_compiles")

POLICY = rl.gaussian(lambda w, x: x @ w[:2] + jnp.broadcast_to(w[2], x.shape))
PARAMS = {"mean": jnp.zeros((3, 2)), "log_std": jnp.full(2, -2.5)}
GOALS = jax.vmap(jaxmaml.tasks.navigation.goals())(jax.random.split(jax.random.key(5), 3))
ROLLOUT = rl.rollout(jaxmaml.tasks.navigation.environment(), POLICY, num_trajectories=5, horizon=6)


def learner_of(outer_optimizer=None, factory=jaxmaml.maml, surrogate=rl.lvc, **axes):
    axes = {"supports": supports.collect(ROLLOUT), "queries": supports.collect(ROLLOUT)} | axes
    outer_optimizer = outer_optimizer or optax.sgd(0.1)
    return factory(surrogate(POLICY), optax.sgd(0.05), outer_optimizer, num_inner_steps=2, **axes)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **({"rtol": 1e-4, "atol": 1e-5} | tolerance)), a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes",
    [{}, {"objective": jaxmaml.objectives.online()}, {"derivative": "first_order"}],
    ids=["last step", "every step", "first order"],
)
def test_a_step_on_recorded_rollouts_is_the_on_policy_step(axes):
    learner = learner_of(**axes)
    state = learner.init(PARAMS)
    expected = jax.jit(learner.update)(state, GOALS)
    found = jax.jit(rl.on_policy(learner).update)(state, GOALS)
    assert_close(found, expected)
    assert np.abs(expected[0].params["mean"]).max() > 0


def test_it_records_the_batches_of_a_plain_loop():
    learner = learner_of()
    state, key = learner.init(PARAMS), keys.from_seed(0, 0)
    recorded = jax.jit(functools.partial(rl.collect, learner))(state, GOALS, key)
    assert recorded.support.rewards.shape == (3, 2, 5, 6)
    assert recorded.query.rewards.shape == (3, 3, 5, 6)
    for index, task_key in enumerate(jax.random.split(key, 3)):
        own, goal, params = keys.of_task(task_key), GOALS.support[index], PARAMS
        for step in range(2):
            batch = ROLLOUT(params, goal, jax.random.fold_in(own.support, step))
            assert_close(jax.tree.map(lambda leaf, i=index, k=step: leaf[i, k], recorded.support), batch)
            grads = jax.grad(lambda p, batch=batch: rl.lvc(POLICY)(p, batch)[0])(params)
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
        query = ROLLOUT(params, goal, jax.random.fold_in(own.query, 2))
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i, 2], recorded.query), query, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_further_epochs_are_steps_of_the_replay_on_the_same_rollouts():
    learner = learner_of(surrogate=rl.clipped)
    state = learner.init(PARAMS)
    found, info = jax.jit(rl.on_policy(learner, num_epochs=3).update)(state, GOALS)
    recorded = rl.collect(learner, state, GOALS, keys.from_seed(0, 0))
    replay = learner.spec.replace(supports=supports.stream(), queries=supports.stream())
    expected, update = state, jax.jit(replay.update)
    for _ in range(3):
        expected, _ = update(expected, recorded)
    assert_close(found.params, expected.params)
    assert found.step == 1
    assert_close(info.aux["kl"], jnp.zeros(3), atol=1e-6)


@pytest.mark.slow
def test_the_trust_region_holds_on_the_recorded_rollouts():
    """The divergence of adapted policies, before and after the outer step, is what it was told to be."""
    max_kl = 1e-3
    learner = learner_of(rl.trust_region(max_kl))
    state = learner.init(PARAMS)
    new, _ = jax.jit(rl.on_policy(learner).update)(state, GOALS)
    assert 0 < new.opt_state.fraction <= 1
    recorded = rl.collect(learner, state, GOALS, keys.from_seed(0, 0))
    replay = learner_of(supports=supports.stream(), queries=supports.stream())
    before, after = (jax.jit(replay.update)(replay.init(s.params), recorded)[1] for s in (state, new))
    assert 0.2 * max_kl < after.aux["kl"].mean() <= 1.01 * max_kl
    assert after.query_loss.mean() < before.query_loss.mean()


@pytest.mark.slow
def test_it_trains_in_fit_and_adapts_as_the_learner_does():
    learner = rl.on_policy(learner_of(optax.adam(0.02)))
    goal = jaxmaml.Task(jnp.array([0.05, 0.0]), jnp.array([0.05, 0.0]))
    sample = lambda key: jax.tree.map(lambda leaf: leaf + 1e-6 * jax.random.normal(key, (2,)), goal)  # noqa: E731
    state, history = jaxmaml.fit(
        learner, learner.init(PARAMS), sample, jax.random.key(0), num_steps=60, num_tasks=4, progress=False
    )
    assert history.aux["return"][-10:].mean() > history.aux["return"][:10].mean() + 0.05
    assert int(state.step) == 60
    plain = learner_of(optax.adam(0.02))
    adapted = [one.adapt(state, goal.support, key=jax.random.key(1))[0] for one in (learner, plain)]
    assert_close(*adapted)


@pytest.mark.usefixtures("x64")
def test_through_the_learner_dice_has_the_exact_meta_gradient():
    """The trajectories of all that can happen, as an axis of `maml`: the whole library against dynamic programming."""

    def every(plan, data, step, fast_params):
        return jax.lax.stop_gradient(mdp.trajectories(fast_params))

    advantages = rl.advantages(discount=1.0, baseline=None, standardize=False)

    def found(surrogate):
        learner = jaxmaml.maml(
            surrogate(mdp.POLICY, advantages),
            optax.sgd(0.7),
            optax.sgd(1.0),
            num_inner_steps=2,
            supports=every,
            queries=every,
        )
        state = learner.init(jnp.asarray(mdp.LOGITS))
        nothing = jnp.zeros(1)
        new, _ = jax.jit(learner.update)(state, jaxmaml.Task(nothing, nothing))
        return state.params - new.params

    def exact(logits):
        loss = lambda at: -mdp.expected_return(at) / mdp.HORIZON  # noqa: E731
        for _ in range(2):
            logits = logits - 0.7 * jax.grad(loss)(logits)
        return loss(logits)

    expected = jax.grad(exact)(jnp.asarray(mdp.LOGITS))
    np.testing.assert_allclose(found(rl.dice), expected, atol=1e-10)
    assert np.abs(found(rl.lvc) - expected).max() > 1e-3


def test_bad_input():
    plain = learner_of(supports=None)
    with pytest.raises(ValueError, match=r"`supports` of the learner must collect rollouts"):
        rl.on_policy(plain)
    with pytest.raises(ValueError, match=r"`queries` of the learner must collect rollouts"):
        rl.collect(learner_of(queries=supports.stream()), plain.init(PARAMS), GOALS, jax.random.key(0))
    with pytest.raises(ValueError, match="`num_epochs` must be >= 1"):
        rl.on_policy(learner_of(), num_epochs=0)
    with pytest.raises(TypeError, match="`learner` must be a MetaLearner"):
        rl.on_policy(jaxmaml.maml)
    without = jaxmaml.MetaLearner(plain.init, plain.adapt, plain.update)
    with pytest.raises(TypeError, match="got one of three functions"):
        rl.on_policy(without)
    silent = lambda params, goal, key: ROLLOUT(params, goal, jax.random.key(0))  # noqa: E731
    learner = learner_of(supports=supports.collect(silent))
    with pytest.raises(ValueError, match="does not use its key"):
        rl.on_policy(learner).update(learner.init(PARAMS), GOALS)
    other_shapes = lambda params, goal, key: (  # noqa: E731
        rl.rollout(jaxmaml.tasks.navigation.environment(), POLICY, num_trajectories=5, horizon=7)(params, goal, key)
    )
    learner = learner_of(queries=supports.collect(other_shapes))
    _, info = rl.on_policy(learner).update(learner.init(PARAMS), GOALS)
    assert np.isfinite(info.query_loss).all()


def test_a_loss_without_a_divergence_is_refused_by_the_trust_region():
    loss_fn = lambda params, batch: rl.lvc(POLICY)(params, batch)[0]  # noqa: E731
    collect = supports.collect(ROLLOUT)
    learner = rl.on_policy(
        jaxmaml.maml(loss_fn, optax.sgd(0.05), rl.trust_region(), num_inner_steps=1, supports=collect, queries=collect)
    )
    with pytest.raises(TypeError, match="`trust_region` needs `kl_fn`, got None"):
        learner.update(learner.init(PARAMS), GOALS)
