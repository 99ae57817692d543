"""Programs of users: a loss of several terms, an algorithm, and a choice on every axis; and how each is judged.

A program runs by jaxmaml under `jit`, and by the references without `jit`, operation by operation, which is what it
should give. Where these differ, plain JAX under `jit` tells whether XLA computes plain JAX wrongly too.
"""

import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies

import jaxmaml
from tests.differential import references, terms

#: Equal: the largest difference in a leaf's gradient, as a share of the largest entry of the whole gradient.
TOLERANCE = 1e-9
#: Where some leaves are float32.
TOLERANCE_OF_FLOAT32 = 2e-4


class Program(NamedTuple):
    """A choice on every axis; see `axes_of` and `rules_of` for what the names mean."""

    algorithm: str
    terms: tuple[str, ...]
    rule: str
    num_inner_steps: int
    num_tasks: int
    num_examples: int
    derivative: str
    chunk_size: int | str | None
    remat: str
    mesh: bool
    adapted: str
    objective: str
    start: str
    aux: bool
    mixed_dtypes: bool
    rewrite: bool
    seed: int

    def __str__(self) -> str:
        return json.dumps(self._asdict())


class Verdict(NamedTuple):
    """How a program was judged.

    Attributes:
      error: The largest difference from the reference, as a share of the gradient's largest entry; of jaxmaml.
      plain_errors: Of plain JAX under `jit`, with a loop over tasks and with `vmap`; looked at where jaxmaml differs.
      refused: What jaxmaml says where it refuses the program by name.
      tolerance: What counts as equal.
      compares: Whether it is wrong by JAX's derivatives of maxima, which compare rounded values: with `rewrite=True`,
        which replaces them, it is equal.
    """

    error: float
    plain_errors: tuple[float, ...] = ()
    refused: str = ""
    tolerance: float = TOLERANCE
    compares: bool = False

    @property
    def kind(self) -> str:
        """`equal`; `refused`; `xla` where plain JAX under `jit` is wrong as well, or may be by its rule; or `wrong`."""
        if self.refused:
            return "refused"
        if self.error <= self.tolerance:
            return "equal"
        return "xla" if self.compares or max(self.plain_errors) > self.tolerance else "wrong"


RULES = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.8, nesterov=True),
    "adam": lambda: optax.adam(0.02, eps_root=1e-6),
    "clipped": lambda: optax.chain(jaxmaml.clip_by_global_norm(0.3), optax.sgd(0.1)),
    "clipped by value": lambda: optax.chain(optax.clip(0.05), optax.sgd(0.3)),
    "decay": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(optax.exponential_decay(0.1, 1, 0.9))),
    "amsgrad": lambda: optax.amsgrad(0.02, eps_root=1e-6),
    # A leaf that the rule leaves still.
    "still": lambda: optax.multi_transform({"moves": optax.sgd(0.1), "still": optax.set_to_zero()}, _labels),
}


def _labels(params):
    names = sorted(name for name, leaf in params.items() if leaf is not None)
    return {name: None if name not in names else "still" if name == names[0] else "moves" for name in params}


#: Whose inner rule and parameters are their own.
OWN_RULES = ("meta_sgd", "maml_plus_plus", "meta_curvature", "bayesian_maml")
ALGORITHMS = {
    "maml": "",
    "fomaml": "",
    "reptile": "",
    "anil": "v",
    "boil": "v",
    "meta_sgd": "",
    "maml_plus_plus": "norm",
    "imaml": "",
    "cavia": "context",
    "meta_curvature": "",
    "warp_maml": "square",
    "proto_maml": "w b head head_bias",
    "es_maml": "",
    "bayesian_maml": "",
    "joint_training": "",
}
_MAML_SHARE = 12  # So many times as often as another algorithm: it has all axes.


@strategies.composite
def programs(draw: Any) -> Program:
    """Any program."""
    one = lambda *choices: draw(strategies.sampled_from(choices))  # noqa: E731
    algorithm = one(*["maml"] * _MAML_SHARE, *ALGORITHMS)
    some = lambda of, number: draw(  # noqa: E731
        strategies.lists(
            strategies.sampled_from([term.__name__ for term in of]), min_size=number, max_size=number, unique=True
        )
    )
    with_data = some(terms.WITH_DATA, one(0, 1, 1, 1, 2, 2))
    without = some(terms.WITHOUT_DATA, one(0, 1, 1, 2))
    own = {"cavia": "with_context", "maml_plus_plus": "normalised", "proto_maml": "cross_entropy"}.get(
        algorithm, "tanh"
    )
    names = tuple(dict.fromkeys([*with_data, *without])) if algorithm == "maml" else (own, *with_data[:1], *without[:1])
    is_maml = algorithm == "maml"
    recursive = one(False, False, True)
    return Program(
        algorithm=algorithm,
        terms=tuple(dict.fromkeys(names)) or ("tanh",),
        rule="sgd" if algorithm in OWN_RULES else one(*RULES),
        num_inner_steps=one(11, 12) if recursive and is_maml else one(1, 1, 2, 3, 5),
        num_tasks=one(1, 2, 3, 4),
        num_examples=one(3, 4, 6),
        derivative=one("mixed", "mixed", "mixed", "reverse", "first_order") if is_maml else "mixed",
        chunk_size=one("auto", 1, 2, None),
        remat="recursive" if recursive else one("gradients", "gradients", "steps", "none"),
        mesh=one(False, False, True),
        adapted=one("all", "all", "all but the first", "v") if is_maml else "all",
        objective=one("last", "last", "last", "multi", "chaser", "before") if is_maml else "last",
        start=one("none", "none", "zero v", "largest") if is_maml else "none",
        aux=draw(strategies.booleans()),
        mixed_dtypes=is_maml and one(False, False, False, True),
        rewrite=one(True, True, True, False),
        seed=draw(strategies.integers(0, 2**16)),
    )


def judged(program: Program) -> Verdict:
    """Run `program` by jaxmaml and by its reference, and by plain JAX under `jit` where these differ."""
    params, learned, tasks = arguments(program)
    try:
        ours = gradient(program, params, tasks)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("`"):  # Refused by name: the argument is the first word.
            raise
        return Verdict(np.inf, refused=f"{type(error).__name__}: {error}".splitlines()[0][:300])
    reference = reference_gradient(program)
    with jax.disable_jit():
        expected = reference(params, learned, tasks)
    tolerance = TOLERANCE_OF_FLOAT32 if program.mixed_dtypes else TOLERANCE
    verdict = Verdict(distance(ours, expected), tolerance=tolerance)
    if verdict.error <= tolerance:
        return verdict
    if not program.rewrite and _has_extrema(program):
        exact = gradient(program._replace(rewrite=True), params, tasks)
        verdict = verdict._replace(compares=distance(exact, expected) <= tolerance)
    loop = distance(jax.jit(reference)(params, learned, tasks), expected)
    together = distance(jax.jit(_over_tasks(reference))(params, learned, tasks), expected)
    return verdict._replace(plain_errors=(loop, together))


def _has_extrema(program: Program) -> bool:
    in_rule = program.rule in ("clipped by value", "amsgrad")
    return in_rule or program.start == "largest" or bool(terms.EXTREMA & {*program.terms})


def _mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def _over_tasks(reference):
    """The mean over tasks of `reference`, by `vmap`; iMAML and ES draw and solve task by task."""

    def together(params, learned, tasks):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
        each = jax.vmap(lambda task: reference(params, learned, [task]))(stacked)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), each)

    return together


def distance(ours, expected) -> float:
    """The largest difference, as a share of the largest entry."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    ]
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    return difference / largest if np.isfinite(difference) and largest > 1e-12 else difference


def arguments(program: Program) -> tuple[Any, Any, Any]:
    """Parameters, what is learned beside, and tasks as a list of pairs of batches."""
    uses_v = program.start != "none" or program.adapted == "v"
    extra = ALGORITHMS[program.algorithm].split() + (["v"] if uses_v else [])
    params = terms.params_of(program.terms, program.seed, extra)
    if program.mixed_dtypes:
        params = {n: p.astype(jnp.float32) if i % 2 else p for i, (n, p) in enumerate(sorted(params.items()))}
    rng = np.random.default_rng(program.seed + 2)
    learned: Any = ()
    if program.algorithm == "meta_sgd":
        learned = {n: jnp.full(p.shape, 0.1) for n, p in params.items()}
    elif program.algorithm == "maml_plus_plus":
        steps = program.num_inner_steps
        learned = {n: jnp.full((steps,), 0.1) for n in params if n != "norm"}
        params["norm"] = params["norm"][None] + 0.1 * rng.normal(size=(steps, 4))
    elif program.algorithm == "meta_curvature":
        ways = {n: p.shape if p.ndim < 3 else (int(np.prod(p.shape[:-2])), *p.shape[-2:]) for n, p in params.items()}
        learned = {n: tuple(jnp.eye(w) + 0.1 * rng.normal(size=(w, w)) for w in each) for n, each in ways.items()}
    elif program.algorithm == "bayesian_maml":
        params = {n: jnp.stack([p, 1.2 * p + 0.03, 0.9 * p - 0.05]) for n, p in params.items()}
    return params, learned, terms.tasks_of(program.num_tasks, program.num_examples, program.seed)


def _moving(program: Program, params: Any) -> list[str]:
    """The leaves that inner steps move, by name."""
    names = sorted(params)
    fixed = {
        "anil": [n for n in names if n != "v"],
        "boil": ["v"],
        "cavia": [n for n in names if n != "context"],
        "warp_maml": ["square"],
        "maml_plus_plus": ["norm"],
    }.get(program.algorithm, [])
    chosen = {"all": names, "all but the first": names[1:], "v": ["v"]}[program.adapted]
    return [name for name in chosen if name not in fixed]


def _embed(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None])


def _start(program: Program, scale: float = 0.1):
    """What adaptation starts from: `(params, support) -> params`."""
    if program.algorithm == "proto_maml":

        def prototypes(params, support):
            embedded, labels = _embed(params, support["x"]), np.asarray(np.arange(program.num_examples) % 3)
            centres = jnp.stack([embedded[labels == c].mean(0) for c in range(terms.NUM_CLASSES)])
            bias = -scale * jnp.sum(centres**2, 1)
            return {**params, "head": 2 * scale * centres.T, "head_bias": bias}

        return prototypes
    return {
        "cavia": lambda params, support: {**params, "context": jnp.zeros_like(params["context"])},
        "none": lambda params, support: params,
        "zero v": lambda params, support: {**params, "v": jnp.zeros_like(params["v"])},
        "largest": lambda params, support: {
            **params,
            "v": (params["v"] * jnp.maximum(jnp.max(jnp.sin(support["x"])), 0.2 + params["v"])).astype(
                params["v"].dtype
            ),
        },
    }["cavia" if program.algorithm == "cavia" else program.start]


def _weights(program: Program) -> list[float]:
    """Of multi-step losses."""
    weights = [0.5 + 0.25 * (k % 3) for k in range(program.num_inner_steps)]
    return [0.0 if k == 1 else w for k, w in enumerate(weights)]


def reference_gradient(program: Program):
    """`(params, learned, tasks) -> gradients` of both, by the references."""
    loss, steps = terms.loss_of(program.terms), program.num_inner_steps
    first_order = program.algorithm == "fomaml" or program.derivative == "first_order"
    params, _, _ = arguments(program)
    moving, start = _moving(program, params), _start(program)
    rule = {
        "meta_sgd": references.rates_rule,
        "meta_curvature": lambda: references.kronecker_rule(optax.sgd(0.1)),
        "bayesian_maml": lambda: references.svgd_rule(0.1, 0.5),
    }.get(program.algorithm, lambda: references.optax_rule(RULES[program.rule]()))()
    if program.algorithm == "imaml":
        solve = functools.partial(references.imaml_gradient, loss, rule, steps, moving, _STRENGTH)
        return lambda params, learned, tasks: (_mean([solve(params, task) for task in tasks]), ())
    if program.algorithm == "es_maml":
        estimate = functools.partial(references.es_maml_gradient, loss, rule, steps, moving, 0.1, 3, 0)
        return lambda params, learned, tasks: (estimate(params, tasks), ())
    if program.algorithm == "bayesian_maml":
        particle_loss = lambda p, batch: jnp.mean(jax.vmap(loss, (0, None))(p, batch))  # noqa: E731
        meta_loss = references.chaser(particle_loss, rule, steps, 1, moving)
    elif program.algorithm == "reptile":
        meta_loss = references.reptile(loss, rule, steps, moving)
    elif program.algorithm == "maml_plus_plus":
        meta_loss = references.maml_plus_plus(loss, steps, moving, _weights(program))
    elif program.algorithm == "joint_training" or program.objective == "before":
        meta_loss = references.joint_training(loss, start)
    elif program.objective == "chaser":
        meta_loss = references.chaser(loss, rule, steps, 2, moving, start, first_order)
    else:
        weights = _weights(program) if program.objective == "multi" else None
        meta_loss = references.maml(loss, rule, steps, moving, start, first_order, weights)
    return lambda params, learned, tasks: jax.grad(meta_loss, argnums=(0, 1))(params, learned, tasks)


_STRENGTH = 20.0


def learner_of(program: Program, mesh: Any) -> jaxmaml.MetaLearner:
    """The learner whose outer step of size 1 is the meta-gradient."""
    params, _, _ = arguments(program)
    moving = _moving(program, params)
    multi = jaxmaml.objectives.multi_step(lambda step: jnp.array(_weights(program)))
    execution = {
        "chunk_size": program.chunk_size,
        "remat": program.remat,
        "mesh": mesh if program.mesh else None,
        "rewrite": program.rewrite,
    }
    axes: dict[str, Any] = {}
    if program.algorithm == "maml":
        axes["derivative"] = program.derivative
        axes["adapted"] = None if program.adapted == "all" else moving
        axes["start"] = None if program.start == "none" else _start(program)
        axes["objective"] = {
            "last": None,
            "multi": multi,
            "chaser": jaxmaml.objectives.chaser(2),
            "before": jaxmaml.objectives.before_adaptation,
        }[program.objective]
    outer, own = optax.sgd(1.0), {}
    inner: Any = RULES[program.rule]()
    if program.algorithm in ("anil", "boil"):
        own["head"] = "v"
    elif program.algorithm == "cavia":
        own["context"] = "context"
    elif program.algorithm == "warp_maml":
        own["warp"] = "square"
    elif program.algorithm == "imaml":
        own |= {"strength": _STRENGTH, "max_solver_steps": 200, "tolerance": 1e-13}
    elif program.algorithm == "es_maml":
        own |= {"std": 0.1, "num_pairs": 3}
    elif program.algorithm == "bayesian_maml":
        inner, own["repulsion"] = 0.1, 0.5
    elif program.algorithm == "meta_sgd":
        inner = 0.1
    elif program.algorithm == "meta_curvature":
        inner = optax.sgd(0.1)
    elif program.algorithm == "proto_maml":
        own |= {"embed": _embed, "head": ["head", "head_bias"], "scale": 0.1}
    loss = terms.loss_of(program.terms, program.aux)
    if program.algorithm == "proto_maml":  # Its batches are pairs of inputs and labels.
        pairs = {"loss": loss}
        loss = lambda params, pair: pairs["loss"](params, pair[0])  # noqa: E731
        own["embed"] = lambda params, inputs: _embed(params, inputs["x"])
    if program.algorithm == "maml_plus_plus":
        rule = jaxmaml.rules.learned_rates(0.1, per="tensor", num_steps=program.num_inner_steps)
        return jaxmaml.maml(
            loss,
            rule,
            outer,
            num_inner_steps=program.num_inner_steps,
            per_step="norm",
            objective=multi,
            **execution,
        )
    factory = getattr(jaxmaml, program.algorithm)
    return factory(loss, inner, outer, num_inner_steps=program.num_inner_steps, **own, **axes, **execution)


@functools.cache
def _mesh() -> Any:
    return jaxmaml.task_mesh()


def gradient(program: Program, params: Any, tasks: Any) -> tuple[Any, Any]:
    """The meta-gradient by jaxmaml: of the parameters and of what is learned beside them."""
    _, learned, _ = arguments(program)
    learner = learner_of(program, _mesh() if program.mesh else None)
    fresh = {**params, "norm": params["norm"][0]} if program.algorithm == "maml_plus_plus" else params
    state = learner.init(fresh)
    if learned:  # A leaf that no inner step moves has no rate.
        learned = {**dict.fromkeys(state.rule_params), **learned}
    state = state._replace(params=params, rule_params=learned)
    supports, queries = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *part) for part in zip(*tasks, strict=True))
    if program.algorithm == "proto_maml":
        supports, queries = ((part, part["label"]) for part in (supports, queries))
    new, info = jax.jit(learner.update)(state, jaxmaml.Task(supports, queries))
    assert info.query_loss.shape == (program.num_tasks,)
    return jax.tree.map(jnp.subtract, (state.params, state.rule_params), (new.params, new.rule_params))
