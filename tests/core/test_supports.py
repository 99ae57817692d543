"""Supports, queries, starts and keys as a user sees them; the differential programs compare their mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmaml
from jaxmaml import starts, supports
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles")


def distance(params, batch):
    return jnp.mean((params - batch) ** 2)


def learner_of(loss_fn=distance, num_inner_steps=3, **axes):
    return problems.maml(loss_fn, num_inner_steps=num_inner_steps, **axes)


# ---- supports ----


def test_a_stream_that_is_too_short_is_refused():
    chunks = jnp.ones((2, 3, 4))  # 2 tasks, 3 chunks
    learner = learner_of(supports=supports.stream())
    state, _ = learner.update(learner.init(jnp.zeros(())), jaxmaml.Task(chunks, chunks))
    with pytest.raises(ValueError, match=r"needs a slice for each of 4 steps along the leading axis .* which has 3"):
        learner.adapt(state, chunks[0], num_inner_steps=4)
    with pytest.raises(ValueError, match="needs a slice for each of 4 steps"):
        jaxmaml.evaluate(learner, distance, state, jaxmaml.Task(chunks, chunks), num_inner_steps=4)
    both = learner_of(supports=supports.stream(), queries=supports.stream())
    with pytest.raises(ValueError, match="one more slice than there are inner steps"):
        both.update(state, jaxmaml.Task(chunks, chunks))


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 0.0, 2.0, 0.0, 1.0]])
def test_minibatches_draw_every_example_before_any_again(weights):
    """Of a padded batch, only those of positive weight."""
    rows = jnp.arange(6.0)
    data = rows if weights is None else jaxmaml.WeightedBatch(rows, rows, jnp.array(weights))
    chosen, draws = supports.complete("supports", supports.minibatches(2))
    assert draws
    plan = chosen.plan(data, 6, jax.random.key(0))
    batches = [chosen.at(plan, data, step, None, None) for step in range(6)]
    seen = np.concatenate([b if weights is None else b.inputs for b in batches])
    real = range(6) if weights is None else np.flatnonzero(weights)
    rounds = seen.reshape(-1, len(real))
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.broadcast_to(real, rounds.shape))
    assert len({tuple(order) for order in rounds}) > 1


@pytest.mark.parametrize("remat", ["none", "steps", "gradients"])
def test_the_backward_pass_collects_no_rollout_again(remat):
    """Each of the K inner steps and the query collects once in an outer step, which a counter on the host shows."""
    count = []

    def told(noise):
        count.append(1)
        return noise

    def rollout(params, data, key):
        noise = jax.random.normal(key, (4,))
        noise = jax.pure_callback(told, jax.ShapeDtypeStruct((4,), noise.dtype), noise, vmap_method="sequential")
        return data + params + noise

    collect = supports.collect(rollout)
    learner = learner_of(
        lambda w, batch: jnp.mean(jnp.sin(w * batch)), remat=remat, supports=collect, queries=collect, chunk_size=None
    )
    tasks = jaxmaml.Task(jnp.ones((1,)), jnp.ones((1,)))
    jax.block_until_ready(jax.jit(learner.update)(learner.init(jnp.zeros(())), tasks))
    jax.effects_barrier()
    assert len(count) == 3 + 1


def test_rollouts_do_not_go_with_recursive_rematerialisation():
    collect = supports.collect(lambda params, data, key: data + jax.random.normal(key))
    with pytest.raises(ValueError, match=r'`supports` that collect rollouts do not go with remat="recursive"'):
        learner_of(supports=collect, remat="recursive")


def test_a_function_is_the_batch_of_a_step():
    """`at` alone; it may leave out its key."""

    def at(plan, data, step, fast_params):
        return data * step

    learner = learner_of(num_inner_steps=2, supports=at)
    fast_params, _ = learner.adapt(learner.init(jnp.ones(())), jnp.ones(3))
    expected = 1.0
    for step in range(2):
        expected -= 0.1 * 2 * (expected - step)
    np.testing.assert_allclose(fast_params, expected, rtol=1e-6)
    assert not learner.spec.needs_key


# ---- starts ----


def test_noise_is_drawn_for_each_task_on_the_chosen_leaves():
    params = {"moved": jnp.zeros(1000), "kept": jnp.ones(3)}
    loss_fn = lambda p, batch: 0.0 * jnp.sum(p["moved"]) + jnp.sum(p["kept"] * batch[None])  # noqa: E731
    learner = learner_of(loss_fn, num_inner_steps=1, start=starts.noise(0.5, "moved"))
    state = learner.init(params)
    one, two = (learner.adapt(state, jnp.zeros(()), key=jax.random.key(k))[0] for k in (0, 1))
    again, _ = learner.adapt(state, jnp.zeros(()), key=jax.random.key(0))
    np.testing.assert_array_equal(one["kept"], params["kept"])
    np.testing.assert_array_equal(one["moved"], again["moved"])
    assert np.abs(one["moved"] - two["moved"]).min() > 0
    np.testing.assert_allclose(np.std(one["moved"]), 0.5, rtol=0.1)


def shared_head_learner(num_ways=None):
    loss_fn = jaxmaml.cross_entropy(lambda p, x: jnp.tanh(x @ p["body"]) @ p["head"]["w"] + p["head"]["b"][None])
    return loss_fn, learner_of(loss_fn, num_inner_steps=2, start=starts.shared_head("head", num_ways))


SHARED = {
    "body": jnp.eye(4),
    "head": {"w": jax.random.normal(jax.random.key(0), (4, 3)), "b": jnp.array([0.3, 0.2, 0.1])},
}


def test_the_order_of_labels_does_not_matter_with_a_shared_head():
    inputs, labels = jax.random.normal(jax.random.key(1), (2, 6, 4)), jnp.array([0, 0, 1, 1, 2, 2])
    _, learner = shared_head_learner()
    gradients = []
    for order in ([0, 1, 2], [2, 0, 1]):
        batch = inputs, jnp.tile(jnp.array(order)[labels], (2, 1))
        gradients.append(problems.meta_gradient(learner, SHARED, jaxmaml.Task(batch, batch)))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_a_shared_head_has_any_number_of_ways_at_test():
    """The state of three classes adapts to five, as a plain loop from five equal columns does."""
    _, trained = shared_head_learner()
    loss_fn, tested = shared_head_learner(num_ways=5)
    inputs, labels = jax.random.normal(jax.random.key(2), (10, 4)), jnp.arange(10) % 5
    state = trained.init(SHARED)
    fast_params, _ = tested.adapt(state, (inputs, labels))
    head = {"w": jnp.tile(SHARED["head"]["w"][:, :1], (1, 5)), "b": jnp.tile(SHARED["head"]["b"][:1], 5)}
    expected = {**SHARED, "head": head}
    for _ in range(2):
        grads = jax.grad(lambda p: loss_fn(p, (inputs, labels))[0])(expected)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
    for ours, theirs in zip(jax.tree.leaves(fast_params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    tasks = jaxmaml.Task(*[(inputs[None], labels[None])] * 2)
    assert jaxmaml.evaluate(tested, loss_fn, state, tasks, num_inner_steps=2).accuracy.per_task.shape == (1, 3)


# ---- the specification ----


def test_spec_says_what_a_learner_is():
    learner = learner_of(supports=supports.minibatches(2), chunk_size=4)
    assert learner.spec.algorithm == "maml"
    assert learner.spec.num_inner_steps == 3
    assert learner.spec.needs_key
    assert learner.spec.mesh is None
    assert repr(learner) == "MetaLearner(maml, num_inner_steps=3, chunk_size=4, supports=minibatches)"
    other = learner.spec.replace(supports=None, derivative="first_order")
    assert not other.spec.needs_key
    assert repr(other) == "MetaLearner(maml, num_inner_steps=3, chunk_size=4, derivative='first_order')"


def test_a_learner_that_draws_needs_a_key():
    learner = learner_of(start=starts.noise(0.1))
    state = learner.init(jnp.zeros(2))
    with pytest.raises(TypeError, match="`key` is needed, because this learner draws random numbers"):
        learner.adapt(state, jnp.zeros(2))
    tasks = jaxmaml.Task(jnp.zeros((3, 2)), jnp.zeros((3, 2)))
    with pytest.raises(TypeError, match="`key` is needed, because the learner draws random numbers in each task"):
        jaxmaml.evaluate(learner, distance, state, tasks, num_inner_steps=1)


def test_observe_may_take_a_step_and_a_key():
    learner = learner_of()

    def observe(fast_params, step, key):
        return step, jax.random.normal(key)

    _, trace = learner.adapt(learner.init(jnp.zeros(2)), jnp.ones(2), key=jax.random.key(0), observe=observe)
    steps, noise = trace.observed
    np.testing.assert_array_equal(steps, range(4))
    assert len(np.unique(noise)) == 4
    with pytest.raises(TypeError, match="`key` is needed, because `observe` takes one"):
        learner.adapt(learner.init(jnp.zeros(2)), jnp.ones(2), observe=observe)


def test_steps_beyond_training_reuse_the_last_value_of_every_axis():
    """Of parameters and of rates with a value for each of two steps, after four."""
    loss_fn = lambda p, batch: jnp.sum((p["w"] * p["gain"] - batch) ** 2)  # noqa: E731
    rule = jaxmaml.rules.learned_rates(0.1, per="tensor", num_steps=2)
    learner = learner_of(loss_fn, num_inner_steps=2, inner=rule, per_step="gain")
    state = learner.init({"w": jnp.zeros(2), "gain": jnp.ones(2)})
    gains = jnp.array([[1.0, 2.0], [0.5, 1.5]])
    rates = jnp.array([0.1, 0.2])
    state = state._replace(params={**state.params, "gain": gains}, rule_params={**state.rule_params, "w": rates})
    fast_params, _ = learner.adapt(state, jnp.ones(2), num_inner_steps=4)
    w = np.zeros(2)
    for step in (0, 1, 1, 1):
        gain = np.asarray(gains[step])
        w = w - float(rates[step]) * 2 * gain * (w * gain - 1)
    np.testing.assert_allclose(fast_params["w"], w, rtol=1e-5)
