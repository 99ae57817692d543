"""Whatever the loss of a user computes, the default is what plain JAX computes operation by operation."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

SUPPORT = jnp.array([[1.0], [2.0], [3.0], [4.0]])
TASKS = jaxmaml.Task(SUPPORT, SUPPORT + 0.5)
PARAMS = {"w": np.ones(()), "c": np.ones(())}


def penalised(params, batch):
    """A term that no task data reaches, with a weight that is learned."""
    return jnp.mean((params["w"] - batch) ** 2) + (params["w"] * params["c"]) ** 2


@pytest.fixture
def tasks(x64):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), TASKS)


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"derivative": "reverse"},
        {"chunk_size": 1},
        {"chunk_size": 2},
        {"chunk_size": None, "remat": "none"},
        {"mesh": True},
        {"rewrite": False},
    ],
    ids=str,
)
def test_a_term_without_task_data_is_counted_once(tasks, axes):
    """By hand: d/dc 2.5696 and d/dw -2.2416, where counting it for each task gave 1.36 and -4.6608."""
    axes = {**axes, "mesh": jaxmaml.task_mesh()} if "mesh" in axes else axes
    gradient = problems.meta_gradient(problems.maml(penalised, num_inner_steps=1, **axes), PARAMS, tasks)
    np.testing.assert_allclose(gradient, [2.5696, -2.2416], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 2, 12])
def test_a_term_without_task_data_under_disable_jit(tasks, num_inner_steps):
    expected = problems.plain_gradient(penalised, optax.sgd(0.1), num_inner_steps, PARAMS, tasks)
    with jax.disable_jit():
        learner = problems.maml(penalised, num_inner_steps=num_inner_steps)
        state = learner.init(PARAMS)
        gradient = problems.flat(state.params) - problems.flat(learner.update(state, tasks)[0].params)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11)


WAYS = {
    "minibatches": lambda **axes: problems.maml(
        penalised, num_inner_steps=1, supports=jaxmaml.supports.minibatches(1), **axes
    ),
    "meta_sgd": lambda **axes: jaxmaml.meta_sgd(penalised, 0.1, optax.sgd(1.0), num_inner_steps=1, **axes),
    "meta_curvature": lambda **axes: jaxmaml.meta_curvature(
        penalised, optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=1, **axes
    ),
    "chaser": lambda **axes: problems.maml(
        penalised, num_inner_steps=1, objective=jaxmaml.objectives.chaser(1), **axes
    ),
    "bayesian_maml": lambda **axes: jaxmaml.bayesian_maml(penalised, 0.1, optax.sgd(1.0), num_inner_steps=1, **axes),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_term_without_task_data_in_other_algorithms(tasks, way):
    params = PARAMS if way != "bayesian_maml" else jax.tree.map(lambda p: p * np.array([1.0, 1.3, 0.6]), PARAMS)
    default, reverse = (
        problems.meta_gradient(WAYS[way](**axes), params, tasks) for axes in ({}, {"derivative": "reverse"})
    )
    np.testing.assert_allclose(default, reverse, rtol=1e-12)
    assert np.abs(default).max() > 0.1


@jax.custom_vjp
def scaled_and_squared(x, c):
    return jnp.sin(x) * c, c**2


scaled_and_squared.defvjp(
    lambda x, c: (scaled_and_squared(x, c), (x, c)),
    lambda kept, bars: (
        jnp.cos(kept[0]) * kept[1] * bars[0],
        jnp.sum(jnp.sin(kept[0]) * bars[0]) + 2 * kept[1] * bars[1],
    ),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:derivative=")
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("axes", [{}, {"derivative": "reverse"}, {"chunk_size": 2}], ids=str)
def test_a_custom_rule_of_the_users_with_a_result_that_sees_no_task_data(tasks, num_inner_steps, axes):
    """`vmap` counts that result's cotangent once for each task, in plain JAX too; JAX 0.12 refuses."""

    def loss_fn(params, batch):
        prediction, square = scaled_and_squared(params["w"] * batch, params["c"])
        return jnp.mean((prediction - batch) ** 2) + square * params["w"] ** 2

    expected = problems.plain_gradient(loss_fn, optax.sgd(0.1), num_inner_steps, PARAMS, tasks)
    learner = problems.maml(loss_fn, num_inner_steps=num_inner_steps, **axes)
    np.testing.assert_allclose(problems.meta_gradient(learner, PARAMS, tasks), expected, rtol=1e-11)


STILL = optax.multi_transform(
    {"moves": optax.sgd(0.1), "still": optax.set_to_zero()}, {"w": "moves", "c": "still", "unused": "moves"}
)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["gradients", "recursive"])
@pytest.mark.parametrize("num_inner_steps", [2, 12])
def test_leaves_that_the_inner_rule_leaves_still(tasks, remat, num_inner_steps):
    params = {**PARAMS, "unused": np.ones(2)}
    learner = problems.maml(penalised, STILL, num_inner_steps, remat=remat)
    expected = problems.plain_gradient(penalised, STILL, num_inner_steps, params, tasks)
    np.testing.assert_allclose(problems.meta_gradient(learner, params, tasks), expected, rtol=1e-11, atol=1e-14)


def pooled(x):
    """Pooling as users write it."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


POOLS = {
    "reshape and max": pooled,
    "minimum": lambda x: -jnp.minimum(-x, 0.1)[:, ::2, ::2],
    "maximum": lambda x: jnp.maximum(x, 0.0)[:, ::2, ::2],
    "clip": lambda x: jnp.clip(x, -0.5, 0.7)[:, ::2, ::2],
    "min": lambda x: -pooled(-x),
    "running": lambda x: jax.lax.cummax(x, axis=1)[:, ::2, ::2],
}


def pooling_problem(pool, num_tasks, side=8):
    """Two convolutions with batch statistics, each pooled."""
    rng = np.random.default_rng(3)
    dims = ("NHWC", "HWIO", "NHWC")

    def apply(params, x):
        for layer in params["blocks"]:
            x = jaxmaml.nn.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dims)
            x = pool(jaxmaml.nn.batch_norm(x, layer["scale"], layer["bias"]))
        return x.reshape(x.shape[0], -1) @ params["head"]

    def layer(channels_in, channels_out):
        return {
            "kernel": jnp.asarray(0.5 * rng.normal(size=(3, 3, channels_in, channels_out))),
            "scale": jnp.asarray(1 + 0.1 * rng.normal(size=channels_out)),
            "bias": jnp.asarray(0.1 * rng.normal(size=channels_out)),
        }

    blocks = [layer(1, 3), layer(3, 4)]
    params = {"blocks": blocks, "head": jnp.asarray(rng.normal(size=((side // 4) ** 2 * 4, 3)))}
    inputs = jnp.asarray(rng.normal(size=(2, num_tasks, 6, side, side, 1)))
    labels = jnp.tile(jnp.array([0, 1, 2, 0, 1, 2]), (num_tasks, 1))
    loss_fn = jaxmaml.cross_entropy(apply)
    return (lambda p, b: loss_fn(p, b)[0]), params, jaxmaml.Task((inputs[0], labels), (inputs[1], labels))


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("inner", "num_inner_steps"),
    [(optax.sgd(0.1), 1), pytest.param(optax.adam(0.01, eps_root=1e-8), 2, id="adam-2")],
)
def test_maxima_keep_their_gradients(x64, pool, inner, num_inner_steps):
    """XLA computes a fused operand again with another rounding: nothing equals the maximum then, for plain JAX too."""
    loss_fn, params, tasks = pooling_problem(POOLS[pool], num_tasks=2)
    expected = problems.plain_gradient(loss_fn, inner, num_inner_steps, params, tasks)
    for axes in ({}, {"derivative": "reverse"}, {"chunk_size": 1}):
        ours = problems.meta_gradient(problems.maml(loss_fn, inner, num_inner_steps, **axes), params, tasks)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max(), err_msg=str(axes))


def test_without_rewriting_the_program_is_plain_jax(x64):
    """The switch, and the environment's: the same equations as those of JAX."""
    loss_fn, params, tasks = pooling_problem(pooled, num_tasks=2)

    def program(**options):
        learner = problems.maml(loss_fn, num_inner_steps=1, chunk_size=None, **options)
        return str(jax.make_jaxpr(learner.update)(learner.init(params), tasks))

    # That of the accuracy, in the support's and in the query's loss, beside those by which maxima are differentiated.
    assert program().count("argmax") > 2
    assert program(rewrite=False).count("argmax") == 2
    assert "conv_general_dilated" not in program(rewrite=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMAML_REWRITE", "0")
        assert program().count("argmax") == 2
        assert "conv_general_dilated" in program()
        patch.setenv("JAXMAML_REWRITE", "off")
        with pytest.raises(ValueError, match="`JAXMAML_REWRITE` must be 0 or 1, got 'off'"):
            program()


@pytest.mark.slow
def test_no_rule_closes_over_tracers():
    """What it closes over would outlive its trace: JAX's own check for leaks finds it."""
    params, tasks = problems.mlp_params(), problems.mlp_tasks(2)
    for axes in ({}, {"remat": "recursive"}, {"derivative": "reverse", "remat": "recursive"}):
        for num_inner_steps in (1, 3, 12):
            with jax.checking_leaks():  # While tracing: there is no need to compile.
                learner = problems.maml(problems.mlp_loss, num_inner_steps=num_inner_steps, **axes)
                jax.jit(learner.update).lower(learner.init(params), tasks)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["gradients", "recursive"])
def test_adapting_without_jit_keeps_no_support_alive(remat):
    learner = problems.maml(problems.mlp_loss, num_inner_steps=12, remat=remat)
    state = learner.init(problems.mlp_params())

    def number_alive(seed):
        x = jax.random.normal(jax.random.key(seed), (1000, 1))
        learner.adapt(state, (x, x))
        del x
        gc.collect()
        return len(jax.live_arrays())

    first, *others = [number_alive(seed) for seed in range(4)]
    assert others == [first] * 3


SHARDED = {
    "mixed": {},
    "one step": {"num_inner_steps": 1},
    "reverse": {"derivative": "reverse"},
    "chunks": {"chunk_size": 1},
    "recursive": {"num_inner_steps": 12, "remat": "recursive"},
    "chaser": {"objective": jaxmaml.objectives.chaser(1)},
    "multi-step": {"objective": jaxmaml.objectives.multi_step(lambda step: jnp.array([0.5, 0.0]))},
    "rates": {"inner": jaxmaml.rules.learned_rates(0.1)},
    "minibatches": {"supports": jaxmaml.supports.minibatches(1)},
    "implicit": {"derivative": jaxmaml.Implicit()},
    "first-order": {"first_order_steps": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED)
def test_within_a_shard_map_of_the_users_own(tasks, case):
    """Each device learns from its own tasks, with JAX's check of what varies (`check_vma`) too."""
    axes = {"inner": optax.adam(0.1, eps_root=1e-8), "num_inner_steps": 2, **SHARDED[case]}
    learner = problems.maml(penalised, **axes)
    state = learner.init(PARAMS)

    def step(state, tasks):
        new, info = learner.update(state, tasks)
        key = jax.random.key(1)
        fast_params, _ = learner.adapt(state, jax.tree.map(lambda leaf: leaf[0], tasks.support), key=key)
        evaluated = jaxmaml.evaluate(learner, penalised, state, tasks, key, num_inner_steps=2)
        whole = (new.params, new.rule_params, info.grad_norm, fast_params)
        return jax.tree.map(lambda leaf: leaf[None], whole), (info.query_loss, evaluated.query_loss.per_task)

    halves = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 2], tasks) for at in (0, 2)]
    expected = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(step(state, half) for half in halves))
    mesh = jaxmaml.task_mesh()
    for check in (True, False):
        sharded = jax.shard_map(
            step, mesh=mesh, in_specs=(jax.P(), jax.P("tasks")), out_specs=jax.P("tasks"), check_vma=check
        )
        for a, b in zip(jax.tree.leaves(jax.jit(sharded)(state, tasks)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
