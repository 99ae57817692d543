"""Malformed calls: each gets its own clear error, before anything is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles")

SGD = optax.sgd(0.1)
PARAMS = {"theta": jnp.zeros(2)}
CENTRES = jnp.ones((3, 2))
TASKS = jaxmaml.Task(CENTRES, CENTRES)
IMAGES = np.zeros((6, 4, 8, 8, 1), np.uint8)
KEY = jax.random.key(0)


def make(loss_fn=problems.quadratic_loss, inner=SGD, outer=SGD, num_inner_steps=1, **options):
    return jaxmaml.maml(loss_fn, inner, outer, num_inner_steps=num_inner_steps, **options)


def update(tasks=TASKS, state=None, **options):
    learner = make(**options)
    return learner.update(learner.init(PARAMS) if state is None else state, tasks)


def adapt(support, **options):
    learner = make()
    return learner.adapt(learner.init(PARAMS), support, **options)


def evaluate(tasks, key=KEY, **options):
    learner = make()
    options = {"num_inner_steps": 1} | options
    return jaxmaml.evaluate(learner, problems.quadratic_loss, learner.init(PARAMS), tasks, key, **options)


def one_task(key):
    return jaxmaml.Task(jnp.ones(2), jnp.ones(2))


def fit(sample=one_task, key=KEY, learner=None, **options):
    learner = learner or make()
    options = {"num_steps": 1, "num_tasks": 2, "progress": False} | options
    return jaxmaml.fit(learner, make().init(PARAMS), sample, key, **options)


def episodes(images=IMAGES, **options):
    return jaxmaml.tasks.image_episodes(images, **({"num_ways": 5, "num_shots": 1, "num_queries": 1} | options))


RULE = jaxmaml.InnerRule(
    lambda params: (), lambda rule_params, params: (), lambda grads, state, *rest, **extra: (grads, state)
)
REGRESSION = jaxmaml.Batch(jnp.ones((4, 1)), jnp.ones(4))
MALFORMED = {
    # maml
    "loss_fn is no function": (lambda: make(loss_fn=3), TypeError, "`loss_fn` must be callable, got int"),
    "inner optimizer is a rate": (lambda: make(inner=0.1), TypeError, "`inner_optimizer` must be an optax"),
    "outer optimizer is a factory": (lambda: make(outer=optax.adam), TypeError, "`outer_optimizer` must be an optax"),
    "no inner steps": (lambda: make(num_inner_steps=0), ValueError, "`num_inner_steps` must be >= 1, got 0"),
    "half an inner step": (lambda: make(num_inner_steps=0.5), TypeError, "`num_inner_steps` must be an int, got 0.5"),
    "True inner steps": (lambda: make(num_inner_steps=True), TypeError, "`num_inner_steps` must be an int, got True"),
    "unknown derivative": (lambda: make(derivative="second"), ValueError, "one of 'mixed', 'reverse', 'first_order'"),
    "unhashable derivative": (lambda: make(derivative=["mixed"]), ValueError, "`derivative` must be one of"),
    "chunk of zero": (lambda: make(chunk_size=0), ValueError, "`chunk_size` must be >= 1, got 0"),
    "inner Adam without eps_root": (lambda: make(inner=optax.adam(0.1)), ValueError, "eps_root"),
    "inner Adam in a chain": (
        lambda: make(inner=optax.chain(optax.clip(1.0), optax.scale_by_adam(), optax.scale(-0.1))),
        ValueError,
        "eps_root",
    ),
    # init
    "integer params": (lambda: make().init({"a": {"b": jnp.arange(3)}}), TypeError, r"int32.*params\['a'\]\['b'\]"),
    "complex params": (lambda: make().init(jnp.ones(2, jnp.complex64)), TypeError, "must be floating point"),
    "params of text": (lambda: make().init({"name": "net"}), TypeError, "must be floating point"),
    "empty params": (lambda: make().init({}), ValueError, "`params` has no arrays"),
    # update
    "state is params": (lambda: update(state=PARAMS), TypeError, "`state` must be a MetaState .* got dict"),
    "tasks is a tuple": (lambda: update((CENTRES, CENTRES)), TypeError, r"`tasks` must be a jaxmaml.Task.* got tuple"),
    "uneven tasks": (
        lambda: update(jaxmaml.Task(CENTRES, jnp.ones((4, 2)))),
        ValueError,
        "same leading axis.*3 at tasks.support.*4 at tasks.query",
    ),
    "a task without a task axis": (lambda: update(jaxmaml.Task(jnp.float32(1), CENTRES)), ValueError, "scalar at"),
    "empty support": (
        lambda: update(jaxmaml.Task(jnp.ones((3, 0, 2)), CENTRES)),
        ValueError,
        r"`tasks.support` is empty: .*\(3, 0, 2\)",
    ),
    "no tasks": (lambda: update(jaxmaml.Task(jnp.ones((0, 2)), jnp.ones((0, 2)))), ValueError, "is empty"),
    "support of None": (lambda: update(jaxmaml.Task(None, CENTRES)), ValueError, "`tasks.support` has no arrays"),
    "query of text": (lambda: update(jaxmaml.Task(CENTRES, ["x"])), TypeError, "`tasks.query` must be a pytree of arr"),
    # the axes
    "unknown axis": (lambda: make(adapt="head"), TypeError, "Unexpected argument `adapt`; the axes are"),
    "axis that makes the algorithm": (
        lambda: jaxmaml.fomaml(problems.quadratic_loss, SGD, SGD, num_inner_steps=1, derivative="mixed"),
        TypeError,
        "`derivative` is fixed by this algorithm",
    ),
    "start is no function": (lambda: make(start=1), TypeError, "`start` must be callable"),
    "start of another shape": (
        lambda: update(start=lambda params, support: {"theta": jnp.zeros(3)}),
        ValueError,
        r"`start\(params, support, key\)` must be like the parameters",
    ),
    "leaves that are not there": (
        lambda: update(adapted="head"),
        ValueError,
        "`adapted` selects no leaf, got 'head'; the leaves are theta",
    ),
    "nothing left to adapt": (lambda: update(per_step="theta"), ValueError, "`per_step` leaves nothing to adapt"),
    "minibatch of too many": (
        lambda: update(supports=jaxmaml.supports.minibatches(3)),
        ValueError,
        "`size` of `supports.minibatches` is 3, but the data has 2 examples",
    ),
    "weights of other steps": (
        lambda: update(objective=jaxmaml.objectives.multi_step(lambda step: jnp.ones(3))),
        ValueError,
        r"of shape \(1,\); got \(3,\)",
    ),
    "negative seed": (lambda: make(seed=-1), ValueError, "`seed` must be >= 0"),
    "no perturbation": (lambda: make(derivative=jaxmaml.Evolution(std=0.0)), ValueError, "`std` must be > 0"),
    "unknown rates": (lambda: jaxmaml.rules.learned_rates(per="layer"), ValueError, "`per` must be one of 'parameter'"),
    "rates of words": (lambda: jaxmaml.rules.learned_rates("fast"), TypeError, "`initial` must be a number"),
    "repulsion below zero": (
        lambda: jaxmaml.rules.svgd(0.1, -1.0),
        ValueError,
        "`repulsion` must be a finite number >=",
    ),
    "no scale": (
        lambda: jaxmaml.starts.prototypes(lambda p, x: x, "head", scale=0.0),
        ValueError,
        "`scale` must be > 0",
    ),
    "head that is none": (
        lambda: jaxmaml.proto_maml(
            jaxmaml.cross_entropy(lambda p, x: x), SGD, SGD, num_inner_steps=1, embed=lambda p, x: x, head="theta"
        ).adapt(make().init(PARAMS), jaxmaml.Batch(jnp.ones((2, 2)), jnp.array([0, 1]))),
        ValueError,
        r"`head` must be a kernel \[2, num_ways\] and a bias",
    ),
    # the loss
    "loss per example": (
        lambda: update(loss_fn=lambda p, c: p["theta"] - c),
        ValueError,
        r"scalar loss, got shape \(2,\)",
    ),
    "integer loss": (lambda: update(loss_fn=lambda p, c: jnp.int32(1)), TypeError, "floating-point loss, got .*int32"),
    "loss is None": (lambda: update(loss_fn=lambda p, c: None), TypeError, "got None of type NoneType as the loss"),
    "loss of three": (lambda: update(loss_fn=lambda p, c: (1.0, 2.0, 3.0)), ValueError, "got a tuple of 3"),
    # adapt
    "adapt on nothing": (lambda: adapt(()), ValueError, "`support` has no arrays"),
    "adapt on no examples": (lambda: adapt(jnp.ones((0, 2))), ValueError, "`support` is empty"),
    "adapt for no steps": (lambda: adapt(CENTRES[0], num_inner_steps=0), ValueError, "`num_inner_steps` must be >= 1"),
    "observe is no function": (lambda: adapt(CENTRES[0], observe=1), TypeError, "`observe` must be callable"),
    # evaluate
    "evaluate a list": (lambda: evaluate([TASKS]), TypeError, "a jaxmaml.Task or a sampler"),
    "evaluate without a key": (lambda: evaluate(one_task, None), TypeError, "`key` must be a single PRNG key"),
    "evaluate on no tasks": (lambda: evaluate(one_task, num_tasks=0), ValueError, "`num_tasks` must be >= 1"),
    "evaluate for no steps": (
        lambda: evaluate(TASKS, None, num_inner_steps=0),
        ValueError,
        "`num_inner_steps` must be",
    ),
    "evaluate in no chunks": (lambda: evaluate(TASKS, None, chunk_size=0), ValueError, "`chunk_size` must be >= 1"),
    "evaluate a sampler of arrays": (lambda: evaluate(jax.random.normal), TypeError, r"must be a jaxmaml.Task"),
    "evaluate a function": (
        lambda: jaxmaml.evaluate(make, problems.quadratic_loss, make().init(PARAMS), TASKS, num_inner_steps=1),
        TypeError,
        "`learner` must be a MetaLearner",
    ),
    # fit
    "fit a sampler of arrays": (lambda: fit(jax.random.normal), TypeError, "must be a jaxmaml.Task"),
    "fit a batch": (lambda: fit(TASKS), TypeError, "`sample_task` must be callable"),
    "fit with a seed": (lambda: fit(key=0), TypeError, "`key` must be a single PRNG key .* got 0 of type int"),
    "fit with many keys": (lambda: fit(key=jax.random.split(KEY)), TypeError, "`key` must be a single PRNG key"),
    "fit for no steps": (lambda: fit(num_steps=0), ValueError, "`num_steps` must be >= 1"),
    "fit on no tasks": (lambda: fit(num_tasks=0), ValueError, "`num_tasks` must be >= 1"),
    "fit in no dispatches": (lambda: fit(steps_per_dispatch=0), ValueError, "`steps_per_dispatch` must be >= 1"),
    "fit with writers of none": (lambda: fit(metrics=None), TypeError, "`metrics` must be a writer or some of them"),
    "fit with a raw key of another kind": (
        lambda: fit(key=jnp.zeros(4, jnp.uint32)),
        TypeError,
        "`key` must be a single PRNG",
    ),
    "fit over traced keys": (
        lambda: jax.vmap(
            functools.partial(jaxmaml.fit, make(), make().init(PARAMS), one_task, num_steps=1, num_tasks=1)
        )(KEY[None]),
        TypeError,
        "`key` is traced",
    ),
    "fit a dict": (lambda: fit(learner={"init": None}), TypeError, "`learner` must be a MetaLearner"),
    # tasks
    "no shots": (lambda: jaxmaml.tasks.sinusoid(num_shots=0), ValueError, "`num_shots` must be >= 1"),
    "float images": (lambda: episodes(IMAGES / 255), TypeError, "`images` must be a uint8 array, got float64"),
    "images in a list": (lambda: episodes([1, 2]), TypeError, "`images` must be a uint8 array, got list"),
    "images without channels": (lambda: episodes(IMAGES[..., 0]), ValueError, r"got shape \(6, 4, 8, 8\)"),
    "too many ways": (lambda: episodes(num_ways=7), ValueError, "`num_ways` must be at most .* 6, got 7"),
    "too many images": (lambda: episodes(num_queries=4), ValueError, "at most the images of a class, 4, got 1 . 4"),
    "oblong images": (lambda: episodes(IMAGES[:, :, 1:], rotate=True), ValueError, "square images, got 7 x 8"),
    "no strokes": (lambda: jaxmaml.tasks.strokes.load(num_classes=(1, 0, 1)), ValueError, "`num_classes` must be"),
    "strokes for two splits": (
        lambda: jaxmaml.tasks.strokes.load(num_classes=(1, 1)),
        ValueError,
        r"three counts, for train, valid and test, got \(1, 1\)",
    ),
    "images of no size": (lambda: episodes(IMAGES[..., :0]), ValueError, "`images` is empty"),
    # losses, rules and models
    "aux of text": (
        lambda: update(loss_fn=lambda p, c: (problems.quadratic_loss(p, c), {"name": "net"})),
        TypeError,
        r"auxiliary output of `loss_fn` must be an array or a number, got 'net' of type str at \['name'\]",
    ),
    "observe text": (lambda: adapt(CENTRES[0], observe=lambda p: "x"), TypeError, "`observe.*` must be an array"),
    "accuracy per example": (
        lambda: jaxmaml.evaluate(
            make(), lambda p, c: (jnp.sum(p["theta"]), {"accuracy": c}), make().init(PARAMS), TASKS, num_inner_steps=1
        ),
        ValueError,
        r"scalar accuracy, got shape \(2,\)",
    ),
    "evaluate more tasks than there are": (
        lambda: evaluate(TASKS, None, num_tasks=9),
        ValueError,
        "`num_tasks` is for a sampler",
    ),
    "fit under jit": (
        lambda: jax.jit(lambda state: jaxmaml.fit(make(), state, one_task, KEY, num_steps=1, num_tasks=1))(
            make().init(PARAMS)
        ),
        TypeError,
        "`state` is traced.*scan over learner.update",
    ),
    "state of another optimizer": (
        lambda: update(state=make(outer=optax.adam(0.1)).init(PARAMS)),
        ValueError,
        "`state.opt_state` does not fit this learner",
    ),
    "state of another rule": (
        lambda: update(state=make().init(PARAMS)._replace(rule_params={"rate": jnp.ones(())})),
        ValueError,
        "`state.rule_params` does not fit this learner",
    ),
    "outer inner rule": (lambda: make(outer=RULE), TypeError, "`outer_optimizer` must be an optax .* got InnerRule"),
    "half an inner rule": (lambda: make(inner=RULE._replace(init=None)), TypeError, "`inner_optimizer.init` must be"),
    "integer rule parameters": (
        lambda: make(inner=RULE._replace(init_params=lambda p: {"rate": 1})).init(PARAMS),
        TypeError,
        "Every leaf of `rule_params` must be floating point, got 1",
    ),
    "fit with an odd raw key": (lambda: fit(key=jnp.zeros(3, jnp.uint32)), TypeError, "`key` must be a single PRNG"),
    "targets in a list": (
        lambda: jaxmaml.mean_squared_error(lambda p, x: x)(None, (jnp.ones(2), [1.0, 2.0])),
        TypeError,
        "`targets` must be an array, got list",
    ),
    "batch in a dict": (
        lambda: jaxmaml.cross_entropy(lambda p, x: x)(None, {"x": 1}),
        TypeError,
        r"`batch` must be \(inputs, targets\).* got dict",
    ),
    "apply returns nothing": (
        lambda: jaxmaml.mean_squared_error(lambda p, x: None)(None, REGRESSION),
        TypeError,
        "`apply.*` must be an array, got NoneType",
    ),
    "clip at text": (lambda: jaxmaml.clip_by_global_norm("1"), TypeError, "`max_norm` must be a number, got '1'"),
    "no filters": (lambda: jaxmaml.nn.Conv4.omniglot(5, features=0), ValueError, "`features` must be >= 1"),
    "one image": (
        lambda: jaxmaml.nn.Conv4.omniglot(5).init(KEY, jnp.ones((28, 28, 1))),
        ValueError,
        r"`x` must be images .* got shape \(28, 28, 1\)",
    ),
    "scale of two channels for one": (
        lambda: jaxmaml.nn.batch_norm(jnp.ones((4, 1)), jnp.ones(2)),
        ValueError,
        r"`scale` must have the shape of the channels \(1,\), got \(2,\)",
    ),
    "pool by nothing": (lambda: jaxmaml.nn.max_pool(jnp.ones((1, 2, 2, 1)), 0), ValueError, "`window` must be >= 1"),
    "broadcast targets": (
        lambda: jaxmaml.mean_squared_error(lambda p, x: x)(None, REGRESSION),
        ValueError,
        r"the targets' shape \(4,\), got \(4, 1\)",
    ),
    "float labels": (
        lambda: jaxmaml.cross_entropy(lambda p, x: x)(None, REGRESSION),
        TypeError,
        "must be integer labels, got dtype float32",
    ),
    "logits of another size": (
        lambda: jaxmaml.cross_entropy(lambda p, x: x)(None, (jnp.ones((3, 2)), jnp.arange(4))),
        ValueError,
        r"labels of shape \(4,\), got \(3, 2\)",
    ),
    "queries in automatic chunks": (lambda: make(query_chunk_size="auto"), TypeError, "`query_chunk_size` must be an"),
    "chunks in an array": (lambda: make(chunk_size=np.array([1, 2])), TypeError, "`chunk_size` must be an int"),
    "no such head": (
        lambda: jaxmaml.anil(problems.quadratic_loss, SGD, SGD, num_inner_steps=1, head="Dense_9").init(PARAMS),
        ValueError,
        "`head` selects no leaf, got 'Dense_9'",
    ),
    "no such context": (
        lambda: jaxmaml.cavia(problems.quadratic_loss, SGD, SGD, num_inner_steps=1, context="ctx").init(PARAMS),
        ValueError,
        "`context` selects no leaf, got 'ctx'",
    ),
    "rates outside of their bounds": (
        lambda: jaxmaml.rules.learned_rates(0.1, bounds=(0.2, 1.0)),
        ValueError,
        r"`initial` must be between `bounds`, \(0.2, 1.0\); got 0.1",
    ),
    "bounds upside down": (
        lambda: jaxmaml.rules.learned_rates(0.1, bounds=(1.0, 0.0)),
        ValueError,
        r"`bounds` must be \(low, high\) with low <= high",
    ),
    "one bound": (lambda: jaxmaml.rules.learned_rates(0.1, bounds=1.0), ValueError, r"`bounds` must be"),
    "a group with a number for a name": (
        lambda: make(inner=jaxmaml.rules.learned_rates(0.1, per=len)).init(PARAMS),
        TypeError,
        r"`per\(path\)` must be the name of a group, a string; got",
    ),
    "three rates": (lambda: jaxmaml.rules.learned_rates((0.1, 0.2, 0.3)), ValueError, r"a number or \(low, high\)"),
    "rates from high to low": (
        lambda: jaxmaml.rules.learned_rates((0.1, 0.005)),
        ValueError,
        r"`initial` must be \(low, high\) with low <= high",
    ),
    "objective without its argument": (
        lambda: make(objective=jaxmaml.objectives.chaser),
        TypeError,
        r"`objective` must be what jaxmaml\.objectives\.chaser\(\.\.\.\) returns",
    ),
    "one weight for all steps": (
        lambda: update(objective=jaxmaml.objectives.multi_step(lambda step: 1.0)),
        ValueError,
        r"`weights\(step\)` must be a vector, got shape \(\)",
    ),
    "pool a matrix": (
        lambda: jaxmaml.nn.max_pool(jnp.ones((4, 4))),
        ValueError,
        r"must be images .* got shape \(4, 4\)",
    ),
    "clip at zero": (lambda: jaxmaml.clip_by_global_norm(0.0), ValueError, "`max_norm` must be > 0"),
    "no ways": (lambda: jaxmaml.nn.Conv4.omniglot(0), ValueError, "`num_ways` must be >= 1"),
    # what would never be learned
    "Reptile of a head": (
        lambda: jaxmaml.reptile(problems.quadratic_loss, SGD, SGD, num_inner_steps=1, adapted="theta"),
        ValueError,
        r"`adapted` does not go with the objective `displacement` \(Reptile\)",
    ),
    "Reptile of leaves for each step": (
        lambda: jaxmaml.reptile(problems.quadratic_loss, SGD, SGD, num_inner_steps=1, per_step="theta"),
        ValueError,
        "`per_step` does not go with the objective `displacement`",
    ),
    "Reptile with rates": (
        lambda: jaxmaml.reptile(problems.quadratic_loss, jaxmaml.rules.learned_rates(0.1), SGD, num_inner_steps=1).init(
            PARAMS
        ),
        ValueError,
        "`inner_optimizer` has parameters that the outer loop has to learn, .* does not differentiate the inner loop",
    ),
    "joint training with rates": (
        lambda: jaxmaml.joint_training(
            problems.quadratic_loss, jaxmaml.rules.learned_rates(0.1), SGD, num_inner_steps=1
        ).init(PARAMS),
        ValueError,
        "`inner_optimizer` has parameters that the outer loop has to learn, .* it takes no inner step",
    ),
    # transformations that need more than they get
    **{
        f"outer {name}": (
            lambda transform=transform: make(outer=transform()).init(PARAMS),
            TypeError,
            "`outer_optimizer` cannot be used here: it is called with gradients, its state, the parameters and value,",
        )
        for name, transform in {
            "SAM": lambda: optax.contrib.sam(SGD, SGD),
            "lookahead": lambda: optax.lookahead(SGD, 5, 0.5),
            "L-BFGS": optax.lbfgs,
            "line search": lambda: optax.chain(SGD, optax.scale_by_backtracking_linesearch(5)),
        }.items()
    },
    "inner SAM": (
        lambda: make(inner=optax.contrib.sam(SGD, SGD)).init(PARAMS),
        TypeError,
        "`inner_optimizer` cannot be used here: .* SAM takes gradients at two points",
    ),
    "inner L-BFGS": (
        lambda: make(inner=optax.lbfgs()).init(PARAMS),
        TypeError,
        "`inner_optimizer` cannot be used here: .* differentiated in reverse, and fails",
    ),
    "inner RAdam": (
        lambda: make(inner=optax.radam(0.1, eps_root=1e-8)),
        ValueError,
        "`inner_optimizer` has a NaN derivative within its first 3 steps, whatever the gradient",
    ),
    "inner DoG": (
        lambda: make(inner=optax.contrib.dog()),
        ValueError,
        "`inner_optimizer` has a NaN derivative within its first 3 steps, whatever the gradient",
    ),
    "rewriting by a number": (lambda: make(rewrite=1), TypeError, "`rewrite` must be a bool, got 1"),
    "pool a pixel": (lambda: jaxmaml.nn.max_pool(jnp.ones((1, 1, 1, 1))), ValueError, "at least 2 x 2 pixels"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_call(case):
    call, error, message = MALFORMED[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("case", ["uneven tasks", "empty support", "loss per example", "tasks is a tuple"])
def test_the_same_errors_under_jit(case):
    call, error, message = MALFORMED[case]
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_adam_is_found_out_while_nans_are_debugged():
    with jax.debug_nans(True), pytest.raises(ValueError, match="eps_root"):
        make(inner=optax.adam(0.1))


def test_tasks_on_a_mesh_of_explicit_axes():
    """Those of `jax.make_mesh` by default: with that mesh they are split, and without it the error says what to do."""
    mesh = jax.make_mesh((2,), ("devices",))
    tasks = jax.device_put(jaxmaml.Task(jnp.ones((4, 2)), jnp.ones((4, 2))), jax.NamedSharding(mesh, jax.P("devices")))
    state, _ = update(tasks, mesh=mesh)
    np.testing.assert_allclose(state.params["theta"], 0.1 * 0.9**2 * np.ones(2), rtol=1e-6)
    expected = r"`tasks` must not be split over Explicit axes of another mesh: tasks\.support is split over devices"
    for options in ({}, {"chunk_size": 1}, {"mesh": jaxmaml.task_mesh()}):
        with pytest.raises(ValueError, match=expected):
            update(tasks, **options)
    with pytest.raises(ValueError, match=expected):
        evaluate(tasks, None)


def test_adam_is_welcome_where_it_is_harmless():
    make(inner=optax.adam(0.1), derivative="first_order")
    make(inner=optax.adam(0.1, eps_root=1e-8))
    make(outer=optax.adam(0.1))


def test_a_norm_at_zero_is_warned_of():
    with pytest.warns(UserWarning, match=r"jaxmaml\.clip_by_global_norm"):
        make(inner=optax.chain(optax.clip_by_global_norm(1.0), SGD))


@pytest.mark.filterwarnings("error")
def test_rules_made_for_one_structure_are_not_tried_on_another():
    learner = make(inner=optax.masked(SGD, {"theta": True}))
    learner.update(learner.init(PARAMS), TASKS)
    make(inner=optax.chain(jaxmaml.clip_by_global_norm(1.0), SGD))


def test_numpy_and_python_values_are_accepted():
    learner = make(num_inner_steps=np.int64(2))
    state = learner.init({"theta": np.zeros(2, np.float32)})
    centres = np.ones((3, 2), np.float32)
    state, info = learner.update(state, jaxmaml.Task(centres, centres))
    assert info.support_loss.shape == (3, 2)
    assert functools.reduce(lambda a, b: a and b, (isinstance(x, jax.Array) for x in jax.tree.leaves(state)))
