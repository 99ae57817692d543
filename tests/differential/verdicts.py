"""The verdict on a program.

It runs by jaxmaml under `jit`, and by the references without `jit`, operation by operation, which is what it should
give. Where these differ, plain JAX under `jit` tells whether XLA computes plain JAX wrongly too.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml
from tests.differential import batches, programs, references, terms

#: Equal: the largest difference in a leaf's gradient, as a share of the largest entry of the whole gradient.
TOLERANCE = 1e-9
#: Where some leaves are float32.
TOLERANCE_OF_FLOAT32 = 2e-4


class Verdict(NamedTuple):
    """The verdict on one program.

    Attributes:
      error: The largest difference from the reference, as a share of the gradient's largest entry; of jaxmaml.
      plain_errors: Of plain JAX under `jit`, with a loop over tasks and with `vmap`; looked at where jaxmaml differs.
      refused: What jaxmaml says where it refuses the program by name, or JAX where it refuses the reference too.
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


def verdict_of(program: programs.Program) -> Verdict:
    """Run `program` by jaxmaml and by its reference, and by plain JAX under `jit` where these differ."""
    params, learned, pairs = programs.arguments(program)
    tasks = pairs
    if program.algorithm == "maml":  # With the keys of their draws, which the library derives from its seed.
        tasks = [(*pair, key) for pair, key in zip(pairs, batches.task_keys(0, len(pairs)), strict=True)]
    reference = reference_gradient(program)
    try:
        ours = gradient(program, params, pairs)
    except Exception as error:
        # By jaxmaml, whose first word is the argument; or by JAX, which 0.12 does to some rules under `vmap`.
        if not str(error).startswith("`") and not _is_refused(program, params, learned, tasks):
            raise
        return Verdict(np.inf, refused=f"{type(error).__name__}: {error}".splitlines()[0][:300])
    with jax.disable_jit():
        expected = reference(params, learned, tasks)
    tolerance = TOLERANCE_OF_FLOAT32 if program.mixed_dtypes else TOLERANCE
    verdict = Verdict(distance(ours, expected), tolerance=tolerance)
    if verdict.error <= tolerance:
        return verdict
    if not program.rewrite and _has_extrema(program):
        exact = gradient(program._replace(rewrite=True), params, pairs)
        verdict = verdict._replace(compares=distance(exact, expected) <= tolerance)
    loop = distance(jax.jit(reference)(params, learned, tasks), expected)
    together = distance(jax.jit(reference_gradient(program, _by_vmap))(params, learned, tasks), expected)
    return verdict._replace(plain_errors=(loop, together))


def _is_refused(program: programs.Program, *args) -> bool:
    """Whether plain JAX raises an error as well."""
    try:
        jax.jit(reference_gradient(program, _by_vmap))(*args)
    except Exception:
        return True
    return False


def _has_extrema(program: programs.Program) -> bool:
    in_rule = program.rule in ("clipped by value", "amsgrad")
    return in_rule or program.start == "largest" or bool(terms.EXTREMA & {*program.terms})


def _mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def _by_vmap(function):
    """The mean over tasks of `function(params, learned, tasks)`, which is one already, by `vmap`."""

    def together(params, learned, tasks):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
        each = jax.vmap(lambda task: function(params, learned, [task]))(stacked)
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


def reference_gradient(program: programs.Program, over_tasks=lambda function: function):
    """`(params, learned, tasks) -> gradients` of both, by the references.

    `over_tasks` takes a function that has a loop over tasks to one that has none.
    """
    loss, steps = terms.loss_of(program.terms), program.num_inner_steps
    first_order = program.algorithm == "fomaml" or program.derivative == "first_order"
    params, _, _ = programs.arguments(program)
    moving, start = programs.moving_leaves(program, params), programs.start_of(program)
    rule = {
        "meta_sgd": references.rates_rule,
        "meta_curvature": lambda: references.kronecker_rule(optax.sgd(0.1)),
        "bayesian_maml": lambda: references.svgd_rule(0.1, 0.5),
    }.get(program.algorithm, lambda: references.optax_rule(programs.RULES[program.rule]()))()
    if program.algorithm == "imaml":
        solve = functools.partial(references.imaml_gradient, loss, rule, steps, moving, programs.STRENGTH)
        return over_tasks(lambda params, learned, tasks: (_mean([solve(params, task) for task in tasks]), ()))
    if program.algorithm == "es_maml":
        estimate = functools.partial(references.es_maml_gradient, loss, rule, steps, moving, 0.1, 3, 0)
        return lambda params, learned, tasks: (estimate(params, tasks), ())
    if program.algorithm == "bayesian_maml":
        particle_loss = lambda p, batch: jnp.mean(jax.vmap(loss, (0, None))(p, batch))  # noqa: E731
        meta_loss = references.chaser(particle_loss, rule, steps, 1, moving)
    elif program.algorithm == "reptile":
        meta_loss = references.reptile(loss, rule, steps, moving)
    elif program.algorithm == "maml_plus_plus":
        meta_loss = references.maml_plus_plus(loss, steps, moving, programs.weights_of(program))
    elif program.algorithm == "joint_training":
        meta_loss = references.joint_training(loss, start)
    elif program.objective == "chaser":
        pair = references.chaser(loss, rule, steps, 2, moving, start, first_order)
        keyed = lambda task: (*task[:2], batches.of_task("whole", "whole", 0, task)[0])  # noqa: E731
        meta_loss = lambda params, learned, tasks: pair(params, learned, list(map(keyed, tasks)))  # noqa: E731
    else:
        weights = {
            "last": None,
            "multi": [0.0, *programs.weights_of(program)],
            "online": [1 / (steps + 1)] * (steps + 1),
            "before": [1.0] + [0.0] * steps,
        }[program.objective]
        seen = functools.partial(batches.of_task, program.supports, program.queries, steps)
        seen = seen if program.algorithm == "maml" else None
        meta_loss = references.maml(loss, rule, steps, moving, start, first_order, weights, seen)
    return jax.grad(over_tasks(meta_loss), argnums=(0, 1))


def learner_of(program: programs.Program, mesh: Any) -> jaxmaml.MetaLearner:
    """The learner whose outer step of size 1 is the meta-gradient."""
    params, _, _ = programs.arguments(program)
    moving = programs.moving_leaves(program, params)
    multi = jaxmaml.objectives.multi_step(lambda step: jnp.array(programs.weights_of(program)))
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
        axes["start"] = None if program.start == "none" else programs.start_of(program)
        if program.start == "noise":
            axes["start"] = jaxmaml.starts.noise(0.3, sorted(params)[0])
        axes["supports"], axes["queries"] = batches.axis(program.supports), batches.axis(program.queries)
        axes["objective"] = {
            "last": None,
            "multi": multi,
            "online": jaxmaml.objectives.online(),
            "chaser": jaxmaml.objectives.chaser(2),
            "before": jaxmaml.objectives.before_adaptation,
        }[program.objective]
    outer, own = optax.sgd(1.0), {}
    inner: Any = programs.RULES[program.rule]()
    if program.algorithm in ("anil", "boil"):
        own["head"] = "v"
    elif program.algorithm == "cavia":
        own["context"] = "context"
    elif program.algorithm == "warp_maml":
        own["warp"] = "square"
    elif program.algorithm == "imaml":
        own |= {"strength": programs.STRENGTH, "max_solver_steps": 200, "tolerance": 1e-13}
    elif program.algorithm == "es_maml":
        own |= {"std": 0.1, "num_pairs": 3}
    elif program.algorithm == "bayesian_maml":
        inner, own["repulsion"] = 0.1, 0.5
    elif program.algorithm == "meta_sgd":
        inner = 0.1
    elif program.algorithm == "meta_curvature":
        inner = optax.sgd(0.1)
    elif program.algorithm == "proto_maml":
        own |= {"embed": programs.embed, "head": ["head", "head_bias"], "scale": 0.1}
    loss = batches.unkeyed(terms.loss_of(program.terms, program.aux))
    if program.algorithm == "proto_maml":  # Its batches are pairs of inputs and labels.
        pairs = {"loss": loss}
        loss = lambda params, pair: pairs["loss"](params, pair[0])  # noqa: E731
        own["embed"] = lambda params, inputs: programs.embed(params, inputs["x"])
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


def gradient(program: programs.Program, params: Any, tasks: Any) -> tuple[Any, Any]:
    """The meta-gradient by jaxmaml: of the parameters and of what is learned beside them."""
    _, learned, _ = programs.arguments(program)
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
