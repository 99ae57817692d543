"""Tasks from arrays: every number says which row of which task it is, so that what was drawn can be read off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles")

SIZES = (4, 6, 5)
TABLES = [
    (np.float32(100 * task + np.arange(size))[:, None], np.float32(100 * task + np.arange(size))[:, None])
    for task, size in enumerate(SIZES)
]
KEYS = jax.random.split(jax.random.key(0), 600)


def draw(sample, keys=KEYS):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sample))(keys))


def test_rows_of_tables_are_drawn_without_replacement_and_all_of_them():
    tasks = draw(jaxmaml.tasks.from_arrays(TABLES, num_shots=2))
    assert isinstance(tasks.support, jaxmaml.Batch)
    assert isinstance(tasks.query, jaxmaml.WeightedBatch)
    assert tasks.query.inputs.shape == (600, 4, 1)
    seen = set()
    for support, query, weights in zip(tasks.support.inputs, tasks.query.inputs, tasks.query.weights, strict=True):
        rows = [*support[:, 0], *query[weights > 0, 0]]
        task = int(rows[0] // 100)
        assert sorted(rows) == [100 * task + row for row in range(SIZES[task])]
        seen.add((task, *map(int, support[:, 0])))
    assert len(seen) == 4 * 3 + 6 * 5 + 5 * 4  # Every ordered pair of support rows of every task.


def test_a_fixed_number_of_queries_needs_no_padding():
    tasks = draw(jaxmaml.tasks.from_arrays(TABLES, num_shots=2, num_queries=2))
    assert isinstance(tasks.query, jaxmaml.Batch)
    rows = np.concatenate([tasks.support.targets, tasks.query.targets], axis=1)[..., 0]
    assert all(len(set(row)) == 4 and len(set(row // 100)) == 1 for row in rows)
    counts = np.bincount((rows[:, 0] // 100).astype(int))
    assert np.abs(counts / 600 - 1 / 3).max() < 0.1


@pytest.mark.parametrize("kind", [tuple, jaxmaml.Batch._make])
def test_supports_and_queries_of_ones_own(kind):
    given = [jaxmaml.Task(kind(TABLES[0]), kind(table)) for table in TABLES]
    tasks = draw(jaxmaml.tasks.from_arrays(given))
    assert isinstance(tasks.support, jaxmaml.Batch)
    for inputs, targets, weights in zip(*tasks.query, strict=True):
        task = int(inputs[0, 0] // 100)
        np.testing.assert_array_equal(inputs[weights > 0], TABLES[task][0])
        np.testing.assert_array_equal(targets[weights > 0], TABLES[task][1])


def test_splits_are_disjoint_complete_and_of_one_shape():
    tables = [(np.full((3 + task % 4, 1), task, np.float32), np.zeros((3 + task % 4, 1))) for task in range(20)]
    make = lambda seed: jaxmaml.tasks.from_arrays(tables, num_shots=1, fractions=(0.7, 0.1, 0.2), seed=seed)  # noqa: E731
    splits = make(0)
    found = [set(draw(split).support.inputs.ravel().tolist()) for split in splits]
    assert [len(tasks) for tasks in found] == [14, 2, 4]
    assert set.union(*found) == set(range(20))
    shapes = [jax.eval_shape(split, KEYS[0]) for split in splits]
    assert shapes[0] == shapes[1] == shapes[2]
    other = [set(draw(split).support.inputs.ravel().tolist()) for split in make(1)]
    assert found != other


def test_inputs_may_be_a_pytree_and_labels_integers():
    tables = [({"a": x, "b": x[:, 0].astype(np.int32)}, y[:, 0].astype(np.int32)) for x, y in TABLES]
    task = draw(jaxmaml.tasks.from_arrays(tables, num_shots=1))
    np.testing.assert_array_equal(task.query.inputs["a"][..., 0], task.query.targets)
    assert task.query.targets.dtype == np.int32


def test_a_padded_query_counts_as_its_real_rows():
    """The loss of a task of 4, 6 or 5 rows is the plain one of these."""
    sample = jaxmaml.tasks.from_arrays(TABLES, num_shots=2)
    loss_fn = jaxmaml.mean_squared_error(lambda w, x: w * x)
    task = sample(KEYS[3])
    rows = np.asarray(task.query.inputs)[np.asarray(task.query.weights) > 0]
    np.testing.assert_allclose(loss_fn(0.5, task.query), np.mean((0.5 * rows - rows) ** 2), rtol=1e-6)


def test_training_and_evaluation():
    tables = [(x / 300, np.sin(y)) for x, y in TABLES]
    splits = jaxmaml.tasks.from_arrays(tables, num_shots=2, fractions=(0.34, 0.33, 0.33))
    loss_fn = jaxmaml.mean_squared_error(problems.mlp)
    learner = jaxmaml.maml(loss_fn, optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
    state, history = jaxmaml.fit(
        learner, learner.init(problems.mlp_params()), splits.train, KEYS[0], num_steps=3, num_tasks=2, progress=False
    )
    assert np.isfinite(history.query_loss).all()
    result = jaxmaml.evaluate(learner, loss_fn, state, splits.test, KEYS[1], num_inner_steps=2, num_tasks=4)
    assert np.isfinite(result.query_loss.mean).all()


TASK = jaxmaml.Task(TABLES[0], TABLES[1])
BAD = {
    "none": ([], {"num_shots": 1}, ValueError, "`tasks` has no task"),
    "too small": (TABLES, {"num_shots": 3, "num_queries": 2}, ValueError, r"tasks\[0\] has 4, got 3 \+ 2"),
    "no number": (TABLES, {}, TypeError, "`num_shots` must be an int"),
    "shots of a task": ([TASK], {"num_shots": 2}, ValueError, "for tables"),
    "both kinds": ([TASK, TABLES[0]], {}, TypeError, r"`tasks\[1\]` must be a jaxmaml.Task"),
    "no pair": ([np.ones(3)], {"num_shots": 1}, TypeError, r"`tasks\[0\]` must be \(inputs, targets\), got ndarray"),
    "rows": ([(np.ones((3, 1)), np.ones((4, 1)))], {"num_shots": 1}, ValueError, r"`tasks\[0\]` needs leaves with one"),
    "widths": (
        [TABLES[0], (np.ones((4, 2), np.float32), TABLES[0][1])],
        {"num_shots": 1},
        ValueError,
        "differ in the number of rows alone: number 1",
    ),
    "fractions": (TABLES, {"num_shots": 1, "fractions": (0.5, 0.5, 0.5)}, ValueError, "that add up to 1"),
    "few": (TABLES, {"num_shots": 1, "fractions": (0.98, 0.01, 0.01)}, ValueError, "must leave one in each split"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case):
    tasks, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        jaxmaml.tasks.from_arrays(tasks, **options)


def constant(value, shape=(2,)):
    return lambda key: jaxmaml.Task(jnp.full(shape, value), jax.random.uniform(key, shape))


def test_a_mixture_draws_by_weights_and_within_families():
    tasks = draw(jaxmaml.tasks.mixture([constant(0.0), constant(1.0)], weights=[3, 1]), jax.random.split(KEYS[0], 4000))
    assert abs(tasks.support[:, 0].mean() - 0.25) < 0.03
    assert len(np.unique(tasks.query[:, 0])) > 3900


def test_a_mixture_keeps_arrays_as_leaves():
    sample = jaxmaml.tasks.mixture([jaxmaml.tasks.from_arrays(TABLES, num_shots=2) for _ in range(2)])
    assert sum(leaf.shape == (3, 6, 1) for leaf in jax.tree.leaves(sample)) == 4


BAD_MIXTURES = {
    "none": ([], None, ValueError, "has no sampler"),
    "weights": ([constant(0.0)], [1, 2], ValueError, "one number for each of 1 samplers, got 2"),
    "zero": ([constant(0.0)], [0.0], ValueError, r"`weights\[0\]` must be > 0"),
    "shapes": ([constant(0.0), constant(0.0, (3,))], None, ValueError, r"same shapes and dtypes: samplers\[1\] draws"),
    "not a sampler": ([3], None, TypeError, r"`samplers\[0\]` must be callable"),
}


@pytest.mark.parametrize("case", BAD_MIXTURES)
def test_bad_mixtures(case):
    samplers, weights, error, message = BAD_MIXTURES[case]
    with pytest.raises(error, match=message):
        jaxmaml.tasks.mixture(samplers, weights)
