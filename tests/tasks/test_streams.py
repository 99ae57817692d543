"""Drifting signals, and learning from them chunk by chunk, against plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from jaxmaml.tasks import drifting_signals, streams


def many(sample, count=2000):
    return jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), count))


def values(tasks):
    """The signals in one piece, `[num_tasks, time]`."""
    query = jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1), tasks.query)
    return np.concatenate([query.inputs[:, :1], query.targets], axis=1)


def test_chunks_continue_each_other():
    tasks = many(drifting_signals(3, 5), 7)
    assert tasks.support.inputs.shape == tasks.support.targets.shape == (7, 3, 5, 1)
    assert tasks.query.inputs.shape == tasks.query.targets.shape == (7, 4, 5, 1)
    for support, query in zip(tasks.support, tasks.query, strict=True):
        np.testing.assert_array_equal(support, query[:, :3])
    inputs, targets = tasks.query
    np.testing.assert_array_equal(targets[:, :, :-1], inputs[:, :, 1:])
    np.testing.assert_array_equal(targets[:, :-1, -1], inputs[:, 1:, 0])


def test_the_same_key_is_equal_to_the_bit():
    sample = drifting_signals(2, 4)
    first, second, other = (sample(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.query.inputs, second.query.inputs)
    assert not np.allclose(first.query.inputs, other.query.inputs)


def test_without_drift_and_noise_a_signal_is_two_sines():
    """Four earlier values give the next: s[t+2] + s[t-2] = (a + b) (s[t+1] + s[t-1]) - (2 + a b) s[t], a = 2 cos f."""
    signals = values(many(drifting_signals(4, 8, drift=0.0, noise_std=0.0), 50)).astype(np.float64)
    middle, near, far = signals[:, 2:-2], signals[:, 3:-1] + signals[:, 1:-3], signals[:, 4:] + signals[:, :-4]
    for row in range(50):
        columns = np.stack([near[row], -middle[row]], axis=1)
        (total, constant), *_ = np.linalg.lstsq(columns, far[row], rcond=None)
        np.testing.assert_allclose(columns @ [total, constant], far[row], atol=3e-4)
        frequencies = np.arccos(np.roots([1, -total, constant - 2]).real.clip(-2, 2) / 2)
        # Two close frequencies are hard to tell apart in single precision.
        assert frequencies.min() > 0.5 * streams.FREQUENCY[0]
        assert frequencies.max() < 1.2 * streams.FREQUENCY[1]


def test_the_spread_is_that_of_the_random_walks():
    """E s^2 = 2 E A^2 / 2 at the start, and after n steps exp(2 drift^2 n) as much; the noise adds its variance."""
    drift, length, noise = 0.05, 300, 0.5
    signals = values(many(drifting_signals(1, length // 2, drift=drift, noise_std=noise), 20_000))
    low, high = streams.AMPLITUDE
    square = (high**3 - low**3) / (3 * (high - low))
    expected = square * np.exp(2 * drift**2 * np.array([0, length])) + noise**2
    np.testing.assert_allclose(np.mean(signals[:, [0, -1]] ** 2, axis=0), expected, rtol=0.1)
    np.testing.assert_allclose(signals[:, [0, -1]].mean(0), 0.0, atol=0.1)


def test_frequencies_drift():
    """The fit of the recurrence of the first half does not hold for the second."""
    errors = {}
    for drift in (0.0, 0.05):
        signals = values(many(drifting_signals(1, 100, drift=drift, noise_std=0.0), 100)).astype(np.float64)
        past = np.lib.stride_tricks.sliding_window_view(signals, 5, axis=1)
        weights = [np.linalg.lstsq(row[:60, :4], row[:60, 4], rcond=1e-6)[0] for row in past]
        errors[drift] = np.median([np.abs(r[140:, :4] @ w - r[140:, 4]).mean() for r, w in zip(past, weights)])  # noqa: B905
    assert errors[0.0] < 0.01 < errors[0.05]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_chunks": 0}, ValueError, "`num_chunks` must be >= 1, got 0"),
        ({"num_chunks": 2.0}, TypeError, "`num_chunks` must be an int, got 2.0"),
        ({"chunk_length": 0}, ValueError, "`chunk_length` must be >= 1, got 0"),
        ({"drift": -0.1}, ValueError, "`drift` must be a finite number >= 0.0, got -0.1"),
        ({"noise_std": float("nan")}, ValueError, "`noise_std` must be a finite number >= 0.0, got nan"),
        ({"noise_std": "loud"}, TypeError, "`noise_std` must be a number, got 'loud'"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        drifting_signals(**arguments)


# ---- learning online ----

NUM_CHUNKS = 3
MODEL = jaxmaml.nn.GRU(num_hidden=4, num_outputs=1)
LOSS = jaxmaml.mean_squared_error(MODEL.apply)


def online_learner(**options):
    return jaxmaml.maml(
        LOSS,
        optax.sgd(0.1),
        optax.sgd(1.0),
        num_inner_steps=NUM_CHUNKS,
        supports=jaxmaml.supports.stream(),
        queries=jaxmaml.supports.stream(),
        objective=jaxmaml.objectives.online(**options),
    )


def problem(dtype=jnp.float32):
    params = MODEL.init(jax.random.key(1), jnp.zeros((1, 1)))
    tasks = many(drifting_signals(NUM_CHUNKS, 6), 2)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), (params, tasks))


def chunk(task, k):
    return jax.tree.map(lambda leaf: leaf[k], task)


def losses_by_hand(params, query):
    """The loss of every chunk of one stream before the step on it, and of the last one, which has none."""
    losses = []
    for k in range(NUM_CHUNKS + 1):
        losses.append(LOSS(params, chunk(query, k)))
        if k < NUM_CHUNKS:
            grads = jax.grad(LOSS)(params, chunk(query, k))
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return jnp.stack(losses)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, (0.1, 0.2, 0.3, 0.4)])
def test_the_meta_gradient_is_that_of_a_python_loop(x64, weights):
    params, tasks = problem(jnp.float64)
    options = {} if weights is None else {"weights": lambda step: jnp.array(weights)}
    share = jnp.full(NUM_CHUNKS + 1, 0.25) if weights is None else jnp.array(weights)

    def meta_loss(params):
        return sum(jnp.dot(share, losses_by_hand(params, chunk(tasks.query, i))) for i in range(2)) / 2

    learner = online_learner(**options)
    state, info = jax.jit(learner.update)(learner.init(params), tasks)
    expected = [losses_by_hand(params, chunk(tasks.query, i)) for i in range(2)]
    np.testing.assert_allclose(info.diagnostics, expected, rtol=1e-10)
    np.testing.assert_allclose(info.support_loss, np.array(expected)[:, :-1], rtol=1e-10)
    gradient = jax.tree.map(jnp.subtract, params, state.params)  # The outer step is of length 1.
    jax.tree.map(
        lambda found, by_hand: np.testing.assert_allclose(found, by_hand, rtol=1e-10, atol=1e-14),
        gradient,
        jax.grad(meta_loss)(params),
    )


def test_an_evaluation_scores_each_chunk_before_the_step_on_it(x64):
    params, tasks = problem(jnp.float64)
    learner = online_learner()
    result = jaxmaml.evaluate(learner, LOSS, learner.init(params), tasks, num_inner_steps=NUM_CHUNKS)
    expected = [losses_by_hand(params, chunk(tasks.query, i)) for i in range(2)]
    np.testing.assert_allclose(result.query_loss.per_task, expected, rtol=1e-10)


def test_more_steps_than_chunks_are_refused():
    params, tasks = problem()
    learner = online_learner()
    state = learner.init(params)
    with pytest.raises(ValueError, match=r"needs a slice for each of 4 steps .* which has 3"):
        learner.adapt(state, chunk(tasks.support, 0), num_inner_steps=NUM_CHUNKS + 1)
    with pytest.raises(ValueError, match=r"needs a slice for each of 5 steps .* which has 4"):
        jaxmaml.evaluate(learner, LOSS, state, tasks, num_inner_steps=NUM_CHUNKS + 1)
    with pytest.raises(ValueError, match=r"needs a slice for each of 4 steps .* which has 3"):
        learner.update(state, jaxmaml.Task(tasks.support, tasks.support))
