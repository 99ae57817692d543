"""Each algorithm against a closed form or an independent computation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import family, problems

pytestmark = pytest.mark.usefixtures("quick_compiles")

SUPPORT = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]])
QUERY = np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
THETA = np.array([0.5, -0.25])


def quadratic(factory, inner, outer, num_inner_steps=3, **own):
    """A step on tasks `1/2 ||theta - centre||^2`."""
    learner = factory(problems.quadratic_loss, inner, outer, num_inner_steps=num_inner_steps, **own)
    state = learner.init({"theta": jnp.asarray(THETA)})
    return state, *jax.jit(learner.update)(state, jaxmaml.Task(jnp.asarray(SUPPORT), jnp.asarray(QUERY)))


def difference(before, after):
    return jax.tree.map(jnp.subtract, (before.params, before.rule_params), (after.params, after.rule_params))


def test_first_order_is_the_query_gradient_where_adaptation_ended(x64):
    state, after, _ = quadratic(jaxmaml.fomaml, optax.sgd(0.3), optax.sgd(1.0))
    adapted = SUPPORT + 0.7**3 * (THETA - SUPPORT)
    np.testing.assert_allclose(difference(state, after)[0]["theta"], np.mean(adapted - QUERY, 0), rtol=1e-12)


def test_reptile_moves_to_the_adapted_parameters(x64):
    _, after, _ = quadratic(jaxmaml.reptile, optax.sgd(0.3), optax.sgd(0.5))
    adapted = SUPPORT + 0.7**3 * (THETA - SUPPORT)
    expected = THETA + 0.5 * np.mean(adapted - THETA, 0)
    np.testing.assert_allclose(after.params["theta"], expected, rtol=1e-6)


def test_serial_reptile_visits_tasks_in_turn(x64):
    outer = optax.sgd(optax.linear_schedule(1.0, 0.0, 4))
    _, after, info = quadratic(jaxmaml.reptile, optax.sgd(0.3), outer, serial=True)
    theta = THETA
    for step, centre in enumerate(SUPPORT):
        theta = theta + (1 - step / 4) * (centre + 0.7**3 * (theta - centre) - theta)
    np.testing.assert_allclose(after.params["theta"], theta, rtol=1e-6)
    assert int(after.step) == 1
    assert info.query_loss.shape == (3,)


@pytest.mark.slow
def test_reptile_sees_each_example_once_a_round():
    """With minibatches of 2 of 6 examples, 3 steps are one pass: for a linear loss the order does not matter."""
    loss_fn = lambda params, batch: jnp.sum(params * jnp.mean(batch, 0))  # noqa: E731
    learner = jaxmaml.reptile(
        loss_fn, optax.sgd(1.0), optax.sgd(1.0), num_inner_steps=3, supports=jaxmaml.supports.minibatches(2)
    )
    batch = jax.random.normal(jax.random.key(0), (2, 6, 4))
    state = learner.init(jnp.zeros(4))
    after, _ = jax.jit(learner.update)(state, jaxmaml.Task(batch, batch))
    np.testing.assert_allclose(after.params, -3 * jnp.mean(batch, (0, 1)), rtol=1e-4, atol=1e-6)
    first, other = (learner.adapt(state, batch[0], num_inner_steps=1, key=jax.random.key(k))[0] for k in (0, 1))
    assert not np.allclose(first, other)  # Another order with another key.


def flops(learner, params, tasks):
    state = jax.eval_shape(learner.init, params)
    return jax.jit(learner.update).lower(state, tasks).compile().cost_analysis()["flops"]


def test_frozen_leaves_cost_nothing_in_the_inner_loop():
    """With a wide body, an inner gradient costs MAML two matmuls more per layer than ANIL: none for the body."""

    def loss_fn(params, batch):
        hidden = batch[0]
        for kernel in params["body"]:
            hidden = jnp.tanh(hidden @ kernel)
        return jnp.mean(jnp.square(hidden @ params["head"] - batch[1]))

    width = 64
    params = {"body": [jnp.ones((width, width))] * 3, "head": jnp.ones((width, 1))}
    batch = (jnp.ones((2, width, width)), jnp.ones((2, width, 1)))
    tasks, product = jaxmaml.Task(batch, batch), 2 * 2 * width**3
    options = {"num_inner_steps": 1, "chunk_size": None, "derivative": "first_order"}
    whole = flops(jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), **options), params, tasks)
    head = flops(jaxmaml.anil(loss_fn, optax.sgd(0.1), optax.sgd(0.1), head="head", **options), params, tasks)
    assert whole - head > 0.95 * 5 * product  # Three layers' own gradients and two passes between them.


@pytest.mark.slow
@pytest.mark.parametrize(("name", "still"), [("anil", ("body", "norm")), ("boil", ("head",)), ("warp_maml", ("warp",))])
def test_only_adapted_leaves_move_and_all_are_learned(name, still):
    learner, params, tasks = family.problem(name)
    state = learner.init(params)
    fast_params, _ = learner.adapt(state, jax.tree.map(lambda leaf: leaf[0], tasks.support))
    after, _ = jax.jit(learner.update)(state, tasks)
    for part in params:
        same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params[part], fast_params[part])))
        assert same == (part in still or (name == "anil" and part != "head"))
        assert not np.allclose(problems.flat(after.params[part]), problems.flat(params[part]), rtol=0, atol=1e-9)


def test_masks_predicates_and_names_say_the_same():
    mask = {"body": True, "norm": False, "warp": False, "head": {"kernel": True, "bias": False}, "context": False}
    predicate = lambda path: path.startswith("body") or path == "head/kernel"  # noqa: E731
    states = []
    for adapted in (mask, predicate):
        learner = problems.maml(family.loss_fn, adapted=adapted)
        states.append(jax.jit(learner.update)(learner.init(family.regression()), family.regression_tasks())[0])
    np.testing.assert_array_equal(*(problems.flat(state.params) for state in states))


def test_meta_sgd_learns_its_rates_by_the_chain_rule(x64):
    state, after, _ = quadratic(jaxmaml.meta_sgd, 0.3, optax.sgd(1.0), num_inner_steps=1)
    inner_gradient = THETA - SUPPORT
    adapted = THETA - 0.3 * inner_gradient
    params, rates = difference(state, after)
    np.testing.assert_allclose(params["theta"], np.mean(0.7 * (adapted - QUERY), 0), rtol=1e-6)
    np.testing.assert_allclose(rates["theta"], np.mean(-inner_gradient * (adapted - QUERY), 0), rtol=1e-6)


def test_rates_scale_the_transformed_gradient(x64):
    """Clipping comes first; the rates of a long gradient are those of a short one in its direction."""
    rule = jaxmaml.rules.learned_rates(0.5, transform=jaxmaml.clip_by_global_norm(1.0))
    params, grads = {"a": jnp.zeros(2), "b": jnp.zeros(())}, {"a": jnp.array([6.0, 0.0]), "b": jnp.array(8.0)}
    rates = rule.init_params(params)
    updates, _ = rule.update(grads, rule.init(rates, params), params, rates, 0)
    chex.assert_trees_all_close(updates, {"a": jnp.array([-0.3, 0.0]), "b": jnp.array(-0.4)})
    with pytest.raises(TypeError, match="`transform` must be an optax transformation"):
        jaxmaml.rules.learned_rates(0.5, transform=0.1)


def test_rates_of_steps_beyond_the_last_are_the_last():
    rule = jaxmaml.rules.learned_rates(0.1, num_steps=2)
    rates = {"w": jnp.array([[1.0], [2.0]])}
    moves = [float(rule.update({"w": jnp.ones(1)}, (), None, rates, step)[0]["w"][0]) for step in range(4)]
    assert moves == [-1.0, -2.0, -2.0, -2.0]


def test_uniform_rates_lie_between_their_bounds():
    rates = jaxmaml.rules.learned_rates((0.005, 0.1)).init_params({"a": jnp.ones(500), "b": jnp.ones(500)})
    values = problems.flat(rates)
    assert 0.005 <= values.min() < 0.01
    assert 0.095 < values.max() <= 0.1
    assert not np.allclose(rates["a"], rates["b"])


def test_annealed_weights_sum_to_one_and_end_at_the_last_step():
    weights = jaxmaml.objectives.annealed(num_inner_steps=5, num_steps=100)
    for step in (0, 30, 60, 99, 100, 1000):
        np.testing.assert_allclose(weights(step).sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights(50), [0.1, 0.1, 0.1, 0.1, 0.6], rtol=1e-6)
    np.testing.assert_allclose(weights(99)[0], 0.03 / 5, rtol=1e-6)
    np.testing.assert_array_equal(weights(100), [0, 0, 0, 0, 1])


@pytest.mark.slow
def test_first_order_steps_come_first_without_a_second_trace(x64):
    params, tasks = family.regression(jnp.float64), family.regression_tasks(2, jnp.float64)
    # Looped over: unrolled steps round in another order within the branch than alone.
    annealed, first, exact = (
        problems.maml(family.loss_fn, remat="steps", **options)
        for options in ({"first_order_steps": 1}, {"derivative": "first_order"}, {})
    )
    update = jax.jit(annealed.update)
    start = annealed.init(params)
    one, _ = update(start, tasks)
    np.testing.assert_allclose(problems.flat(one), problems.flat(jax.jit(first.update)(start, tasks)[0]), rtol=1e-12)
    two, _ = update(one, tasks)
    np.testing.assert_allclose(problems.flat(two), problems.flat(jax.jit(exact.update)(one, tasks)[0]), rtol=1e-12)
    assert update._cache_size() == 1


@pytest.mark.slow
def test_per_step_leaves_are_those_of_their_step(x64):
    """A shift for each step: `theta + shift_k` adapts, by hand."""
    loss_fn = lambda params, centre: 0.5 * jnp.sum((params["theta"] + params["shift"] - centre) ** 2)  # noqa: E731
    learner = problems.maml(loss_fn, optax.sgd(0.5), 2, per_step="shift")
    state = learner.init({"theta": jnp.zeros(()), "shift": jnp.zeros(())})
    assert state.params["shift"].shape == (2,)
    state = state._replace(params={"theta": jnp.asarray(1.0), "shift": jnp.array([0.1, 0.4])})
    after, info = learner.update(state, jaxmaml.Task(jnp.zeros(1), jnp.ones(1)))
    one = 1.0 - 0.5 * (1.0 + 0.1)
    two = one - 0.5 * (one + 0.4)
    np.testing.assert_allclose(info.support_loss[0], [0.5 * 1.1**2, 0.5 * (one + 0.4) ** 2], rtol=1e-12)
    np.testing.assert_allclose(info.query_loss[0], 0.5 * (two + 0.4 - 1.0) ** 2, rtol=1e-12)
    inner_gradient = two + 0.4 - 1.0
    gradient = jax.tree.map(jnp.subtract, state.params, after.params)
    np.testing.assert_allclose(gradient["theta"], 0.25 * inner_gradient, rtol=1e-12)
    np.testing.assert_allclose(gradient["shift"], [-0.25 * inner_gradient, (1 - 0.5) * inner_gradient], rtol=1e-12)
    fast_params, _ = learner.adapt(state, jnp.zeros(()))
    np.testing.assert_allclose(fast_params["shift"], 0.4)


def test_context_starts_from_zero_and_is_not_learned():
    learner, params, tasks = family.problem("cavia")
    state = learner.init(params)
    after, _ = jax.jit(learner.update)(state, tasks)
    np.testing.assert_array_equal(after.params["context"], params["context"])
    empty = state._replace(params={**state.params, "context": jnp.zeros(2)})
    np.testing.assert_array_equal(
        problems.flat(jax.jit(learner.update)(empty, tasks)[1]), problems.flat(jax.jit(learner.update)(state, tasks)[1])
    )


def test_kronecker_factors_multiply_from_both_sides(x64):
    rng = np.random.default_rng(0)
    rule = jaxmaml.rules.kronecker(optax.sgd(1.0))
    grads = {"dense": rng.normal(size=(3, 4)), "bias": rng.normal(size=4), "conv": rng.normal(size=(2, 2, 3, 5))}
    grads = jax.tree.map(jnp.asarray, grads)
    factors = jax.tree.map(lambda eye: jnp.asarray(rng.normal(size=eye.shape)), rule.init_params(grads))
    updates, _ = rule.update(grads, rule.init(factors, grads), grads, factors, 0)
    left, right = factors["dense"]
    np.testing.assert_allclose(-updates["dense"], left @ grads["dense"] @ right.T, rtol=1e-12)
    np.testing.assert_allclose(-updates["bias"], factors["bias"][0] @ grads["bias"], rtol=1e-12)
    window, inputs, outputs = factors["conv"]
    expected = np.einsum("ab,cd,ef,bdf->ace", window, inputs, outputs, grads["conv"].reshape(4, 3, 5))
    np.testing.assert_allclose(-updates["conv"], expected.reshape(2, 2, 3, 5), rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_prototypes_are_a_prototypical_network_before_the_first_step(x64, scale):
    params, tasks = family.classification(jnp.float64), family.classification_tasks(1, jnp.float64)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    start = jaxmaml.starts.prototypes(family.embed, "head", scale)(params, task.support)
    features, labels = family.embed(params, task.support.inputs), np.asarray(task.support.targets)
    centres = np.stack([np.mean(np.asarray(features)[labels == k], 0) for k in range(3)])
    queries = np.asarray(family.embed(params, task.query.inputs))
    distances = np.sum((queries[:, None] - centres[None]) ** 2, -1)
    logits = family.classify(start, task.query.inputs)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(-scale * distances), rtol=1e-10)


def test_proto_maml_differentiates_the_prototypes(x64):
    learner, params, tasks = family.problem("proto_maml", jnp.float64)

    def meta_loss(params):
        total = 0.0
        for index in range(4):
            task = jax.tree.map(lambda leaf, index=index: leaf[index], tasks)
            features = family.embed(params, task.support.inputs)
            members = jax.nn.one_hot(task.support.targets, 3)
            centres = members.T @ features / jnp.sum(members, 0)[:, None]
            head = {"kernel": 2 * centres.T, "bias": -jnp.sum(centres**2, 1)}
            fast = {**params, "head": head}
            for _ in range(3):
                grads = jax.grad(lambda p, task=task: family.classification_loss(p, task.support)[0])(fast)
                fast = jax.tree.map(lambda p, g: p - 0.05 * g, fast, grads)
            total += family.classification_loss(fast, task.query)[0] / 4
        return total

    state = learner.init(params)
    after, _ = jax.jit(learner.update)(state, tasks)
    ours = jax.tree.map(lambda a, b: (a - b) / 0.1, state.params, after.params)
    np.testing.assert_allclose(
        problems.flat(ours), problems.flat(jax.jit(jax.grad(meta_loss))(params)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_joint_training_is_the_gradient_of_the_query_loss(x64):
    learner, params, tasks = family.problem("joint_training", jnp.float64)
    state = learner.init(params)
    after, _ = learner.update(state, tasks)
    ours = jax.tree.map(lambda a, b: (a - b) / 0.1, state.params, after.params)
    mean = lambda params: jnp.mean(jax.vmap(family.loss_fn, (None, 0))(params, tasks.query))  # noqa: E731
    np.testing.assert_allclose(problems.flat(ours), problems.flat(jax.grad(mean)(params)), rtol=1e-10, atol=1e-14)


def test_evolution_estimates_the_meta_gradient():
    """On quadratics the estimate is unbiased whatever `std`; its spread is known: about |g| sqrt((d + 1) / n)."""
    own = {"num_pairs": 4000, "std": 0.1}
    state, after, _ = quadratic(jaxmaml.es_maml, optax.sgd(0.3), optax.sgd(1.0), **own)
    _, exact, _ = quadratic(jaxmaml.maml, optax.sgd(0.3), optax.sgd(1.0))
    ours, theirs = (difference(state, s)[0]["theta"] for s in (after, exact))
    spread = np.linalg.norm(theirs) * np.sqrt(3 / (3 * 4000))
    assert np.linalg.norm(ours - theirs) < 5 * spread
    _, other, _ = quadratic(functools.partial(jaxmaml.es_maml, seed=1), optax.sgd(0.3), optax.sgd(1.0), **own)
    assert not np.allclose(other.params["theta"], after.params["theta"])
