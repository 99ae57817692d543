"""What holds for every learner of the family, and for every combination of its axes."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import family, problems

pytestmark = pytest.mark.usefixtures("quick_compiles")

# These see the order of tasks: a key for each, or one after another.
RANDOM = ("es_maml",)


def close(ours, theirs, **tolerances):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerances)


@functools.cache
def compiled(name, dtype=jnp.float32, **options):
    """A problem and its outer step, for all tests here: it may be traced once."""
    learner, params, tasks = family.problem(name, dtype, **options)
    return learner, learner.init(params), tasks, jax.jit(chex.assert_max_traces(learner.update, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", family.FACTORIES)
def test_states_are_alike_and_traced_once(name):
    """init, then steps one by one and under scan: the same structure, the same numbers, one trace."""
    learner, state, tasks, update = compiled(name)
    first, info = update(state, tasks)
    second, _ = update(first, tasks)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
    assert int(second.step) == 2
    assert info.query_loss.shape == (4,)
    assert info.grad_norm.shape == ()
    assert info.support_loss.shape == (4, 0 if name == "joint_training" else 3)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((second.params, info)))

    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tasks)
    scanned, _ = jax.jit(lambda state, tasks: jax.lax.scan(learner.update, state, tasks))(state, twice)
    close(scanned, second, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", family.FACTORIES)
def test_adapt_is_the_inner_loop_of_update(name):
    learner, state, tasks, update = compiled(name)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    fast_params, trace = jax.jit(lambda state, support: learner.adapt(state, support, num_inner_steps=5))(
        state, task.support
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(fast_params, family.problem(name)[1])
    assert trace.support_loss.shape == (5,)
    if name != "joint_training":
        _, info = update(state, tasks)
        np.testing.assert_allclose(info.support_loss[0], trace.support_loss[:3], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", family.FACTORIES)
def test_order_and_chunks_of_tasks_do_not_matter(x64, name):
    _, state, tasks, update = compiled(name, jnp.float64, chunk_size=None)
    whole, info = update(state, tasks)
    chunked, _, _ = family.problem(name, jnp.float64, chunk_size=2)
    halves, halves_info = jax.jit(chunked.update)(state, tasks)
    close((halves.params, halves.rule_params), (whole.params, whole.rule_params), rtol=1e-11, atol=1e-13)
    close(halves_info.query_loss, info.query_loss, rtol=1e-12)
    if name not in RANDOM:
        other, _ = update(state, jax.tree.map(lambda leaf: leaf[::-1], tasks))
        close((other.params, other.rule_params), (whole.params, whole.rule_params), rtol=1e-11, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", family.FACTORIES)
def test_bfloat16_stays(name):
    learner, params, tasks = family.problem(name, jnp.bfloat16)
    state = learner.init(params)
    after, info = jax.jit(learner.update)(state, tasks)
    chex.assert_trees_all_equal_dtypes(state.params, after.params)
    assert info.query_loss.dtype == jnp.bfloat16
    assert jnp.all(jnp.isfinite(info.query_loss))


@pytest.mark.parametrize("name", sorted(set(family.FACTORIES) - set(family.OTHER_GRADIENTS)))
def test_finite_differences(x64, name):
    """The step is the gradient of the query loss that is reported, in everything that is learned."""
    _, state, tasks, update = compiled(name, jnp.float64, chunk_size=None)
    learned = (state.params, state.rule_params)
    after, _ = update(state, tasks)
    gradient = jax.tree.map(lambda a, b: (a - b) / 0.1, learned, (after.params, after.rule_params))
    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=float).reshape(p.shape)), learned)

    def loss(by):
        params, rule_params = jax.tree.map(lambda p, d: p + by * d, learned, direction)
        return jnp.mean(update(state._replace(params=params, rule_params=rule_params), tasks)[1].query_loss)

    difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
    np.testing.assert_allclose(optax.tree.vdot(gradient, direction), difference, rtol=2e-6, atol=1e-9)


RULES = {
    "sgd": lambda: optax.sgd(0.1),
    "adam": lambda: optax.adam(0.02, eps_root=1e-6),
    "clipped": lambda: optax.chain(jaxmaml.clip_by_global_norm(0.3), optax.sgd(0.2)),
    "rates": lambda: jaxmaml.rules.learned_rates(0.1),
    "rates of steps": lambda: jaxmaml.rules.learned_rates((0.05, 0.2), per="tensor", num_steps=2),
    "one rate": lambda: jaxmaml.rules.learned_rates(0.1, per="scalar"),
    "kronecker": lambda: jaxmaml.rules.kronecker(optax.sgd(0.1)),
}
ADAPTED = {"all": None, "head": "head", "no bias": lambda path: not path.endswith("bias")}
WEIGHTS = {"last": None, "multi": lambda step: jnp.array([0.5, 0.0, 0.5])}
EXACT = ("mixed", "reverse", "first_order")
# A fifth of all combinations, with every pair of choices on two axes among them.
GRID = [
    combination
    for number, combination in enumerate(itertools.product(RULES, ADAPTED, EXACT, WEIGHTS))
    if (number + number // 6 + number // 18) % 5 == 0
]


def reference(rule, adapted, derivative, weights, params, rule_params, tasks):
    """The meta-loss as anyone would write it down, in Python loops, with every leaf carried along."""
    moves = jax.tree_util.tree_map_with_path(
        lambda path, _: {
            "all": True,
            "head": "head" in jax.tree_util.keystr(path),
            "no bias": "bias" not in jax.tree_util.keystr(path),
        }[adapted],
        params,
    )
    weights = weights(0) if weights else jnp.array([0.0, 0.0, 1.0])
    total = 0.0
    for index in range(jax.tree.leaves(tasks)[0].shape[0]):
        task = jax.tree.map(lambda leaf, index=index: leaf[index], tasks)
        fast = params
        part = jax.tree.map(lambda m, p: p if m else None, moves, fast)
        rule_state = rule.init(rule_params, part)
        for step in range(3):
            grads = jax.grad(family.loss_fn)(fast, task.support)
            if derivative == "first_order":
                grads = jax.lax.stop_gradient(grads)
            grads = jax.tree.map(lambda m, g: g if m else None, moves, grads)
            part = jax.tree.map(lambda m, p: p if m else None, moves, fast)
            updates, rule_state = rule.update(grads, rule_state, part, rule_params, step, value=0.0, grad=grads)
            fast = jax.tree.map(
                lambda p, u: p if u is None else p + u, fast, updates, is_leaf=lambda leaf: leaf is None
            )
            total += weights[step] * family.loss_fn(fast, task.query)
    return total / jax.tree.leaves(tasks)[0].shape[0]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "adapted", "derivative", "weights"), GRID)
def test_every_combination_is_its_definition(x64, rule, adapted, derivative, weights):
    params, tasks = family.regression(jnp.float64), family.regression_tasks(2, jnp.float64)
    objective = WEIGHTS[weights] and jaxmaml.objectives.multi_step(WEIGHTS[weights])
    options = {"derivative": derivative, "adapted": ADAPTED[adapted], "objective": objective}
    learner = problems.maml(family.loss_fn, RULES[rule](), **options)
    state = learner.init(params)
    after, _ = jax.jit(learner.update)(state, tasks)
    ours = jax.tree.map(jnp.subtract, (state.params, state.rule_params), (after.params, after.rule_params))
    inner = jaxmaml.rules.as_inner_rule(RULES[rule]())

    def meta_loss(meta):
        return reference(inner, adapted, derivative, WEIGHTS[weights], *meta, tasks)

    theirs = jax.jit(jax.grad(meta_loss))((state.params, state.rule_params))
    close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_grid_has_every_pair():
    for axes in itertools.combinations(range(4), 2):
        choices = [(RULES, ADAPTED, EXACT, WEIGHTS)[axis] for axis in axes]
        assert set(itertools.product(*choices)) == {tuple(c[axis] for axis in axes) for c in GRID}
