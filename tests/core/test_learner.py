"""MAML's mathematics: closed forms, finite differences, other computations of the same gradient."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

EXACT = ("mixed", "reverse")
INNER = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.02, eps_root=1e-8),
    "clipped": lambda: optax.chain(jaxmaml.clip_by_global_norm(0.3), optax.sgd(0.2)),
    "schedule": lambda: optax.sgd(optax.exponential_decay(0.2, 1, 0.5)),
    "weight decay": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    "needs the loss": lambda: optax.polyak_sgd(0.1),
}


@pytest.mark.parametrize("num_inner_steps", [1, 2, 5, 20])
@pytest.mark.parametrize("derivative", ["mixed", "reverse", "first_order"])
def test_quadratic_closed_form(x64, quick_compiles, derivative, num_inner_steps):
    # theta_K - c_s = (1 - a)^K (theta - c_s), so the meta-gradient is the task mean of
    # (1 - a)^K (theta_K - c_q), and without the leading factor in first order.
    rate, num_tasks = 0.3, 4
    rng = np.random.default_rng(0)
    theta, support, query = rng.normal(size=3), rng.normal(size=(num_tasks, 3)), rng.normal(size=(num_tasks, 3))
    learner = problems.maml(
        problems.quadratic_loss, optax.sgd(rate), num_inner_steps=num_inner_steps, derivative=derivative
    )
    tasks = jaxmaml.Task(jnp.asarray(support), jnp.asarray(query))
    state = learner.init({"theta": jnp.asarray(theta)})
    new_state, info = learner.update(state, tasks)

    shrink = (1 - rate) ** num_inner_steps
    theta_k = support + shrink * (theta - support)
    factor = 1.0 if derivative == "first_order" else shrink
    expected = np.mean(factor * (theta_k - query), axis=0)
    np.testing.assert_allclose(theta - new_state.params["theta"], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(info.query_loss, 0.5 * np.sum((theta_k - query) ** 2, 1), rtol=1e-12)
    steps = (1 - rate) ** np.arange(num_inner_steps)
    losses = 0.5 * steps**2 * np.sum((theta - support) ** 2, 1, keepdims=True)
    np.testing.assert_allclose(info.support_loss, losses, rtol=1e-12)
    np.testing.assert_allclose(info.grad_norm, np.linalg.norm(expected), rtol=1e-12)


def test_anisotropic_quadratic_couples_coordinates(x64, quick_compiles):
    # With Hessian A the factor is (I - a A)^K: the second-order term that first order drops.
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3))
    hessian = root @ root.T / 3
    theta, support, query = rng.normal(size=(3, 3))

    def loss_fn(params, centre):
        return 0.5 * (params - centre) @ jnp.asarray(hessian) @ (params - centre)

    learner = problems.maml(loss_fn, optax.sgd(0.2), num_inner_steps=4)
    gradient = problems.meta_gradient(learner, jnp.asarray(theta), jaxmaml.Task(support[None], query[None]))
    power = np.linalg.matrix_power(np.eye(3) - 0.2 * hessian, 4)
    expected = power @ hessian @ (support + power @ (theta - support) - query)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11)


def meta_loss(learner, loss_fn, params, tasks):
    """The definition, task by task: adapt on the support, evaluate on the query."""
    losses = []
    for index in range(jax.tree.leaves(tasks)[0].shape[0]):
        task = jax.tree.map(lambda leaf, index=index: leaf[index], tasks)
        fast_params, _ = learner.adapt(learner.init(params), task.support)
        output = loss_fn(fast_params, task.query)
        losses.append(output[0] if isinstance(output, tuple) else output)
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "conv"])
@pytest.mark.parametrize("derivative", EXACT)
def test_finite_differences(x64, quick_compiles, model, derivative):
    if model == "mlp":
        loss_fn, params, tasks = problems.mlp_loss, problems.mlp_params(jnp.float64), problems.mlp_tasks(2, jnp.float64)
    else:
        loss_fn, params, tasks = problems.conv_problem(jnp.float64)
    learner = problems.maml(loss_fn, optax.sgd(0.05), derivative=derivative)
    gradient = problems.meta_gradient(learner, params, tasks)
    value = jax.jit(lambda params: meta_loss(learner, loss_fn, params, tasks))
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(4)
    for _ in range(6):
        direction = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves]
        step = 1e-6

        def at(sign, direction=direction, step=step):
            moved = [leaf + sign * step * d for leaf, d in zip(leaves, direction, strict=True)]
            return float(value(jax.tree.unflatten(treedef, moved)))

        difference = (at(1) - at(-1)) / (2 * step)
        np.testing.assert_allclose(gradient @ problems.flat(direction), difference, rtol=2e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["sgd", "momentum", "adam"])
def test_plain_python_loop(x64, quick_compiles, inner):
    """MAML as anyone would write it down: nested loops, jax.grad, no scan, no vmap."""
    params, tasks = problems.mlp_params(jnp.float64), problems.mlp_tasks(3, jnp.float64)
    optimizer = INNER[inner]()

    def objective(params):
        total = 0.0
        for index in range(3):
            fast, opt_state = params, optimizer.init(params)
            for _ in range(3):
                grads = jax.grad(problems.mlp_loss)(fast, (tasks.support[0][index], tasks.support[1][index]))
                updates, opt_state = optimizer.update(grads, opt_state, fast)
                fast = optax.apply_updates(fast, updates)
            total += problems.mlp_loss(fast, (tasks.query[0][index], tasks.query[1][index])) / 3
        return total

    expected = problems.flat(jax.jit(jax.grad(objective))(params))
    for derivative in EXACT:
        learner = problems.maml(problems.mlp_loss, INNER[inner](), derivative=derivative)
        gradient = problems.meta_gradient(learner, params, tasks)
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("inner", INNER)
def test_mixed_equals_reverse(x64, quick_compiles, inner):
    params, tasks = problems.mlp_params(jnp.float64), problems.mlp_tasks(3, jnp.float64)
    # A Polyak step divides by the squared norm of the gradient, of which a learner warns.
    with pytest.warns(UserWarning, match="zero") if inner == "needs the loss" else contextlib.nullcontext():
        mixed, reverse = (
            problems.meta_gradient(problems.maml(problems.mlp_loss, INNER[inner](), derivative=d), params, tasks)
            for d in EXACT
        )
    np.testing.assert_allclose(mixed, reverse, rtol=1e-12, atol=1e-14)
    assert np.linalg.norm(mixed) > 1e-3


@pytest.mark.slow
def test_mixed_equals_reverse_through_pooling_and_batch_statistics(x64, quick_compiles):
    loss_fn, params, tasks = problems.conv_problem(jnp.float64)
    mixed, reverse = (
        problems.meta_gradient(problems.maml(loss_fn, optax.sgd(0.3), derivative=d), params, tasks) for d in EXACT
    )
    np.testing.assert_allclose(mixed, reverse, rtol=1e-12, atol=1e-13)


def test_first_order_stops_the_inner_gradients_only(x64, quick_compiles):
    # Weight decay is a path of its own: d theta_1 / d theta = 1 - a d, not 1.
    learner = problems.maml(
        problems.quadratic_loss,
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.2)),
        num_inner_steps=1,
        derivative="first_order",
    )
    tasks = jaxmaml.Task(jnp.array([[1.0]]), jnp.array([[3.0]]))
    gradient = problems.meta_gradient(learner, {"theta": jnp.array([2.0])}, tasks)
    theta_1 = 2.0 - 0.2 * ((2.0 - 1.0) + 0.5 * 2.0)
    np.testing.assert_allclose(gradient, [(1 - 0.2 * 0.5) * (theta_1 - 3.0)], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6])
def test_the_result_does_not_depend_on_chunks_or_on_vmap(x64, quick_compiles, chunk_size):
    params, tasks = problems.mlp_params(jnp.float64), problems.mlp_tasks(6, jnp.float64)
    whole = problems.maml(problems.mlp_loss)
    state = whole.init(params)
    expected_state, expected_info = whole.update(state, tasks)
    new_state, info = problems.maml(problems.mlp_loss, chunk_size=chunk_size).update(state, tasks)
    chex.assert_trees_all_close((new_state, info), (expected_state, expected_info), rtol=1e-12, atol=1e-13)


def test_vmap_over_tasks_equals_a_loop(x64, quick_compiles):
    params, tasks = problems.mlp_params(jnp.float64), problems.mlp_tasks(4, jnp.float64)
    learner = problems.maml(problems.mlp_loss)
    gradient = problems.meta_gradient(learner, params, tasks)
    one_by_one = [
        problems.meta_gradient(learner, params, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], tasks))
        for i in range(4)
    ]
    np.testing.assert_allclose(gradient, np.mean(one_by_one, 0), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["mixed", "reverse", "first_order"])
def test_jit_equals_eager_and_scan(x64, quick_compiles, derivative):
    learner = jaxmaml.maml(
        problems.mlp_loss, optax.sgd(0.1), optax.adam(1e-2), num_inner_steps=2, derivative=derivative
    )
    tasks = problems.mlp_tasks(3, jnp.float64)
    state = learner.init(problems.mlp_params(jnp.float64))
    eager = learner.update(learner.update(state, tasks)[0], tasks)
    jitted = jax.jit(learner.update)(jax.jit(learner.update)(state, tasks)[0], tasks)
    chex.assert_trees_all_close(eager, jitted, rtol=1e-10, atol=1e-13)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tasks)
    scanned, infos = jax.lax.scan(learner.update, state, stacked)
    chex.assert_trees_all_close(scanned, eager[0], rtol=1e-10, atol=1e-13)
    assert infos.query_loss.shape == (2, 3)


def test_one_trace_for_many_calls_that_are_equal_to_the_bit():
    learner = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.1), optax.adam(1e-2), num_inner_steps=2)
    update = jax.jit(chex.assert_max_traces(learner.update, n=1))
    adapt = jax.jit(chex.assert_max_traces(learner.adapt, n=1))

    def run():
        # A Python float and a NumPy array among the parameters must not cost a second trace.
        params = [*problems.mlp_params()[:-1], {"w": np.ones((8, 1), np.float32), "b": jnp.full((1,), 0.5)}]
        state = learner.init(params)
        for seed in range(5):
            tasks = jax.tree.map(lambda leaf, seed=seed: leaf + seed, problems.mlp_tasks())
            state, _ = update(state, tasks)
            adapt(state, jax.tree.map(lambda leaf: leaf[0], tasks.support))
        return state

    chex.assert_trees_all_equal(run(), run())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("derivative", ["mixed", "reverse", "first_order"])
def test_dtypes_are_kept(x64, quick_compiles, dtype, derivative):
    learner = jaxmaml.maml(
        problems.mlp_loss,
        optax.sgd(0.1, momentum=0.5),
        optax.adam(1e-2),
        num_inner_steps=2,
        derivative=derivative,
        chunk_size=2,
    )
    state = learner.init(problems.mlp_params(dtype))
    new_state, info = jax.jit(learner.update)(state, problems.mlp_tasks(4, dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    assert info.query_loss.dtype == info.support_loss.dtype == dtype
    assert np.isfinite(problems.flat(new_state.params)).all()


@pytest.mark.slow
def test_bfloat16_gradient_is_near_the_exact_one(x64, quick_compiles):
    learner = problems.maml(problems.mlp_loss, chunk_size=1)
    exact = problems.meta_gradient(learner, problems.mlp_params(jnp.float64), problems.mlp_tasks(8, jnp.float64))
    state = learner.init(problems.mlp_params(jnp.bfloat16))
    new_state, _ = learner.update(state, problems.mlp_tasks(8, jnp.bfloat16))
    rough = problems.flat(state.params) - problems.flat(new_state.params)
    assert np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)


def test_any_pytree_of_params_and_batch():
    @chex.dataclass
    class Params:
        gain: chex.Array
        rest: tuple

    def loss_fn(params, batch):
        prediction = params.gain * batch["x"] + params.rest[0]["offset"]
        return jnp.mean(jnp.square(prediction - batch["y"])), {"size": batch["y"].shape[0]}

    learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    state = learner.init(Params(gain=1.0, rest=({"offset": jnp.zeros(())}, None)))
    batch = {"x": jnp.ones((2, 3)), "y": jnp.zeros((2, 3)), "key": jax.random.split(jax.random.key(0), 2)}
    new_state, info = jax.jit(learner.update)(state, jaxmaml.Task(batch, batch))
    assert isinstance(new_state.params, Params)
    assert info.aux["size"].tolist() == [3, 3]
    assert float(new_state.params.gain) < 1.0


def test_adapt_takes_more_steps_and_watches():
    learner = problems.maml(problems.quadratic_loss, optax.sgd(0.5), num_inner_steps=1)
    state = learner.init({"theta": jnp.zeros(1)})
    fast, trace = learner.adapt(state, jnp.ones(1))
    assert float(fast["theta"][0]) == 0.5
    fast, trace = learner.adapt(state, jnp.ones(1), num_inner_steps=4, observe=lambda p: p["theta"][0])
    np.testing.assert_allclose(trace.observed, [0, 0.5, 0.75, 0.875, 0.9375])
    np.testing.assert_allclose(trace.support_loss, 0.5 * (1 - trace.observed[:-1]) ** 2)
    assert float(fast["theta"][0]) == 0.9375


def test_aux_of_the_query_is_reported_per_task():
    def loss_fn(params, centre):
        return problems.quadratic_loss(params, centre), {"distance": params["theta"] - centre}

    learner = problems.maml(loss_fn, optax.sgd(0.5), num_inner_steps=1)
    tasks = jaxmaml.Task(jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [4.0]]))
    _, info = learner.update(learner.init({"theta": jnp.zeros(1)}), tasks)
    np.testing.assert_allclose(info.aux["distance"], [[0.5], [-3.0]])


OUTER = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    "mask of the params": lambda: optax.masked(optax.sgd(0.1), {"theta": True}),
    "labels": lambda: optax.multi_transform({"a": optax.sgd(0.1)}, {"theta": "a"}),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "lookahead of moments": lambda: optax.amsgrad(0.1),
}


@pytest.mark.parametrize("outer", OUTER)
def test_any_outer_optimizer(outer):
    learner = jaxmaml.maml(problems.quadratic_loss, optax.sgd(0.5), OUTER[outer](), num_inner_steps=1)
    tasks = jaxmaml.Task(jnp.ones((2, 1)), jnp.ones((2, 1)))
    state = learner.init({"theta": jnp.zeros(1)})
    update = jax.jit(chex.assert_max_traces(learner.update, n=1))
    for _ in range(3):
        state, _ = update(state, tasks)
    assert 0 < float(state.params["theta"][0]) < 1
    assert int(state.step) == 3


def test_an_inner_rule_can_learn_its_own_parameters(x64, quick_compiles):
    # Meta-SGD on a quadratic: theta_1 = theta - r (theta - c_s), and d loss / d r = (theta_1 - c_q) (c_s - theta).
    rule = jaxmaml.InnerRule(
        init_params=lambda params: jax.tree.map(lambda p: jnp.full_like(p, 0.5), params),
        init=lambda rates, params: (),
        update=lambda grads, state, params, rates, step, **extra: (
            jax.tree.map(lambda r, g: -r * g, rates, grads),
            state,
        ),
    )
    for derivative, factor in [("mixed", 0.5), ("reverse", 0.5), ("first_order", 1.0)]:
        learner = problems.maml(problems.quadratic_loss, rule, num_inner_steps=1, derivative=derivative)
        state = learner.init({"theta": jnp.array([2.0])})
        new_state, info = learner.update(state, jaxmaml.Task(jnp.array([[1.0]]), jnp.array([[3.0]])))
        theta_1 = 2.0 - 0.5 * (2.0 - 1.0)
        rate_gradient, theta_gradient = (theta_1 - 3.0) * (1.0 - 2.0), factor * (theta_1 - 3.0)
        np.testing.assert_allclose(new_state.rule_params["theta"], 0.5 - rate_gradient)
        np.testing.assert_allclose(new_state.params["theta"], 2.0 - theta_gradient)
        np.testing.assert_allclose(info.grad_norm, np.hypot(rate_gradient, theta_gradient))


def test_invariance_to_the_order_of_tasks(x64, quick_compiles):
    params, tasks = problems.mlp_params(jnp.float64), problems.mlp_tasks(5, jnp.float64)
    learner = problems.maml(problems.mlp_loss)
    shuffled = jax.tree.map(lambda leaf: leaf[jnp.array([3, 1, 4, 0, 2])], tasks)
    np.testing.assert_allclose(
        problems.meta_gradient(learner, params, tasks),
        problems.meta_gradient(learner, params, shuffled),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.slow
def test_meta_training_beats_its_start():
    """The point of it all: after training, one step helps a new task more."""
    learner = jaxmaml.maml(problems.mlp_loss, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=1)
    state = learner.init(problems.mlp_params())
    sample = jaxmaml.tasks.sinusoid()
    new_state, _ = jaxmaml.fit(
        learner, state, sample, jax.random.key(0), num_steps=600, num_tasks=8, steps_per_dispatch=600, progress=False
    )
    before, after = (
        jaxmaml.evaluate(learner, problems.mlp_loss, s, sample, jax.random.key(1), num_inner_steps=1, num_tasks=200)
        for s in (state, new_state)
    )
    assert after.query_loss.mean[1] < 0.7 * before.query_loss.mean[1]
    assert after.query_loss.mean[1] < 0.7 * after.query_loss.mean[0]
