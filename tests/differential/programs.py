"""Programs of users: a loss of several terms, an algorithm, and a choice on every axis."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies

import jaxmaml
from tests.differential import batches, terms


class Program(NamedTuple):
    """A choice on every axis; see `verdicts` for what the names mean."""

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
    supports: str
    queries: str
    aux: bool
    mixed_dtypes: bool
    rewrite: bool
    seed: int

    def __str__(self) -> str:
        return json.dumps(self._asdict())


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
    objective = one("last", "last", "last", "multi", "online", "chaser", "before") if is_maml else "last"
    # A chaser takes whole batches, and rollouts are not collected again; both are refused by name.
    new = is_maml and objective != "chaser"
    no_rollouts = lambda choices: [c for c in choices if not (recursive and c == "rollout")]  # noqa: E731
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
        objective=objective,
        start=one("none", "none", "zero v", "largest", "noise") if is_maml else "none",
        supports=one("whole", "whole", *no_rollouts(batches.SUPPORTS)) if new else "whole",
        queries=one("whole", "whole", *no_rollouts(batches.QUERIES)) if new else "whole",
        aux=draw(strategies.booleans()),
        mixed_dtypes=is_maml and one(False, False, False, True),
        rewrite=one(True, True, True, False),
        seed=draw(strategies.integers(0, 2**16)),
    )


def arguments(program: Program) -> tuple[Any, Any, Any]:
    """Parameters, what is learned beside, and tasks as a list of pairs of batches."""
    uses_v = program.start not in ("none", "noise") or program.adapted == "v"
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
    return params, learned, batches.tasks_of(program)


def moving_leaves(program: Program, params: Any) -> list[str]:
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


def embed(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None])


def start_of(program: Program, scale: float = 0.1):
    """What adaptation starts from: `(params, support) -> params`, or with a key."""
    if program.algorithm == "proto_maml":

        def prototypes(params, support):
            embedded, labels = embed(params, support["x"]), np.asarray(np.arange(program.num_examples) % 3)
            centres = jnp.stack([embedded[labels == c].mean(0) for c in range(terms.NUM_CLASSES)])
            bias = -scale * jnp.sum(centres**2, 1)
            return {**params, "head": 2 * scale * centres.T, "head_bias": bias}

        return prototypes
    return {
        "cavia": lambda params, support: {**params, "context": jnp.zeros_like(params["context"])},
        "none": lambda params, support, *key: params,
        "noise": _noisy,
        "zero v": lambda params, support, *key: {**params, "v": jnp.zeros_like(params["v"])},
        "largest": lambda params, support, *key: {
            **params,
            "v": (params["v"] * jnp.maximum(jnp.max(jnp.sin(support["x"])), 0.2 + params["v"])).astype(
                params["v"].dtype
            ),
        },
    }["cavia" if program.algorithm == "cavia" else program.start]


def _noisy(params, support, key):
    """Normal noise on the first leaf, drawn as `jaxmaml.starts.noise` draws it."""
    name = sorted(params)[0]
    (own,) = jax.random.split(key, 1)
    return {**params, name: params[name] + 0.3 * jax.random.normal(own, params[name].shape, params[name].dtype)}


def weights_of(program: Program) -> list[float]:
    """Of multi-step losses."""
    weights = [0.5 + 0.25 * (k % 3) for k in range(program.num_inner_steps)]
    return [0.0 if k == 1 else w for k, w in enumerate(weights)]


STRENGTH = 20.0
