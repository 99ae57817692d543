"""One outer step by jaxmaml, by plain JAX and by each baseline, prepared for timing."""

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxmaml
from benchmarks.speed import programs
from benchmarks.speed.cases import Case

BASELINES = (
    "torch_func",
    "torch_func_compiled",
    "torch_func_graphed",
    "autograd_loop",
    "higher_loop",
    "torchopt_loop",
    "learn2learn_loop",
)
NAMES = (
    "jaxmaml",
    "jaxmaml_mesh",
    "jaxmaml_one_thread",
    "plain_jax",
    "torch_func",
    "higher_loop",
    "torchopt_loop",
    "learn2learn_loop",
)
# For a GPU, or to compare options of jaxmaml's execution. NAME_before is the same in another checkout.
OTHERS = (
    "torch_func_compiled",
    "torch_func_graphed",
    "autograd_loop",
    "jaxmaml_float32",
    "jaxmaml_products",
    "jaxmaml_lax",
    "jaxmaml_chunks",
    "jaxmaml_mesh_no_rewrite",
    "jaxmaml_mesh_products",
    "jaxmaml_one_thread_no_rewrite",
)


class Implementation(NamedTuple):
    """A prepared implementation.

    Attributes:
      run: Takes `steps_per_run` outer steps and waits for them.
      steps_per_run: The number of outer steps of a run.
      result: `() -> (loss, gradients)` of the fixed tasks, in NumPy, to compare.
      costs: `() -> dict` after the first result: `compile_seconds`, the time before the first step; `memory_bytes`,
        without parameters and tasks, and what `memory_is`; `rounding`, the deviation of the timed gradient from the
        result as a share of its largest entry; `bytes_moved` by a step, where it can be counted.
    """

    run: Callable[[], Any]
    steps_per_run: int
    result: Callable[[], tuple[float, Any]]
    costs: Callable[[], dict[str, Any]]


def prepare(name: str, case: Case) -> Implementation:
    """Build an implementation, whose run is a meta-step; on sinusoids it also samples tasks and updates parameters."""
    if name in BASELINES:
        return _baseline(name, case)
    if name == "plain_jax":
        return _plain_jax(case)
    if name in _CHOICES:
        return _jaxmaml(case, *_CHOICES[name])
    raise ValueError(f"The implementations are {', '.join((*NAMES, *OTHERS))}; got {name!r}.")


# The options of jaxmaml: a mesh, which must be made before JAX's first computation; arguments of `maml`; and the
# lowering of convolutions.
_CHOICES: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "jaxmaml": (lambda: None, {}, "auto"),
    "jaxmaml_mesh": (jaxmaml.task_mesh, {}, "auto"),
    "jaxmaml_one_thread": (lambda: jaxmaml.task_mesh(1), {}, "auto"),
    "jaxmaml_float32": (lambda: None, {"matmul_precision": "float32"}, "auto"),
    "jaxmaml_products": (lambda: None, {}, "matmul"),
    "jaxmaml_lax": (lambda: None, {}, "lax"),
    "jaxmaml_chunks": (lambda: None, {"chunk_size": 128}, "auto"),
    "jaxmaml_mesh_no_rewrite": (jaxmaml.task_mesh, {"rewrite": False}, "auto"),
    "jaxmaml_mesh_products": (jaxmaml.task_mesh, {}, "matmul"),
    "jaxmaml_one_thread_no_rewrite": (lambda: jaxmaml.task_mesh(1), {"rewrite": False}, "auto"),
}


def _jaxmaml(case: Case, make_mesh: Callable[[], Any], options: dict[str, Any], lowering: str) -> Implementation:
    mesh = make_mesh()

    # The update by sgd(1) is the negative gradient.
    def learner(outer_optimizer):
        return jaxmaml.maml(
            case.loss_fn(lowering=lowering),
            optax.sgd(case.step_size),
            outer_optimizer,
            num_inner_steps=case.num_inner_steps,
            remat=case.remat,
            mesh=mesh,
            **options,
        )

    params, tasks = jax.tree.map(jnp.asarray, case.problem())
    step = learner(optax.sgd(1.0))
    state, tasks = _placed(step.init(params), tasks, mesh)

    def gradient(state, tasks):
        new, info = step.update(state, tasks)
        return jnp.mean(info.query_loss), jax.tree.map(jnp.subtract, state.params, new.params)

    compiled, seconds = programs.build(gradient, state, tasks)
    result, rounding = programs.results(gradient, compiled, state, tasks)
    if case.model != "mlp":
        costs = functools.partial(programs.costs, compiled, seconds, rounding)
        return Implementation(lambda: jax.block_until_ready(compiled(state, tasks)), 1, result, costs)

    trainer, count = learner(optax.adam(1e-3)), 500
    training = trainer.init(params)
    sample = jaxmaml.tasks.sinusoid(case.num_shots, case.num_queries)

    def train():
        options = {"num_steps": count, "steps_per_dispatch": count, "num_tasks": case.num_tasks, "progress": False}
        return jaxmaml.fit(trainer, training, sample, jax.random.key(0), **options)

    start = time.perf_counter()
    train()
    return Implementation(
        train, count, result, functools.partial(programs.costs, compiled, time.perf_counter() - start, rounding)
    )


def _placed(state: Any, tasks: Any, mesh: Any) -> tuple[Any, Any]:
    """Arrays placed on the mesh, as in `fit`; arrays on a single device would be transferred at each call."""
    if mesh is None:
        return state, tasks
    even = jax.tree.leaves(tasks)[0].shape[0] % mesh.size == 0
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (mesh.axis_names if even else (), ()))
    return jax.device_put(state, whole), jax.device_put(tasks, split)


def _plain_jax(case: Case) -> Implementation:
    """As written from JAX's documentation: `vmap` over tasks, a scan of inner steps, reverse over reverse."""
    loss_of = case.loss_fn(plain=True)
    sample = jaxmaml.tasks.sinusoid(case.num_shots, case.num_queries)
    optimizer = optax.adam(1e-3)

    def loss_fn(params, batch):
        value = loss_of(params, batch)
        return value[0] if isinstance(value, tuple) else value

    def query_loss(params, task):
        def inner_step(fast_params, _):
            grads = jax.grad(loss_fn)(fast_params, task.support)
            return jax.tree.map(lambda p, g: p - case.step_size * g, fast_params, grads), None

        fast_params, _ = jax.lax.scan(inner_step, params, length=case.num_inner_steps)
        return loss_fn(fast_params, task.query)

    def meta_loss(params, tasks):
        return jnp.mean(jax.vmap(query_loss, in_axes=(None, 0))(params, tasks))

    def train(params, opt_state, key):
        key, subkey = jax.random.split(key)
        tasks = jax.vmap(sample)(jax.random.split(subkey, case.num_tasks))
        loss, grads = jax.value_and_grad(meta_loss)(params, tasks)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, key, loss

    params, tasks = jax.tree.map(jnp.asarray, case.problem())
    compiled, seconds = programs.build(jax.value_and_grad(meta_loss), params, tasks)
    result, rounding = programs.results(jax.value_and_grad(meta_loss), compiled, params, tasks)
    if case.model != "mlp":
        costs = functools.partial(programs.costs, compiled, seconds, rounding)
        return Implementation(lambda: jax.block_until_ready(compiled(params, tasks)), 1, result, costs)

    state, count = [params, optimizer.init(params), jax.random.key(0)], 100
    trainer, seconds = programs.build(train, *state)

    def run():
        for _ in range(count):
            *state[:], _ = trainer(*state)
        return jax.block_until_ready(state[0])

    return Implementation(run, count, result, functools.partial(programs.costs, compiled, seconds, rounding))


def _baseline(name: str, case: Case) -> Implementation:
    baseline = importlib.import_module(f"benchmarks.baselines.{name}").BASELINE
    params, tasks = case.problem()
    options = {"num_inner_steps": case.num_inner_steps, "step_size": case.step_size}
    step = baseline.make_step(case.model, params, tasks, **options)
    exact = baseline.exact.make_step(case.model, params, tasks, **options) if baseline.exact else step
    # cuDNN selects its fastest algorithms here, where nothing else runs.
    first = functools.cache(functools.partial(_first_step, baseline, step))
    if name.endswith("compiled"):
        first()

    @functools.cache
    def result():
        first()
        with baseline.full_precision():
            return baseline.as_numpy(case.model, *exact())

    def costs():
        timed = baseline.as_numpy(case.model, *step()) if baseline.inexact else result()
        return {**first(), "rounding": programs.distance(timed, result())}

    if case.model != "mlp":
        return Implementation(step, 1, result, costs)
    counts = {"num_tasks": case.num_tasks, "num_shots": case.num_shots, "outer_step_size": 1e-3}
    count = 20
    train = baseline.make_training(params, **counts, **options)
    return Implementation(lambda: train(count), count, result, costs)


def _first_step(baseline: Any, step: Callable[[], Any]) -> dict[str, Any]:
    """The cost of the first step, as `Implementation.costs`."""
    before, _ = baseline.memory_peak()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    after, how = baseline.memory_peak()
    return {"compile_seconds": seconds, "memory_bytes": after - before, "memory_is": how}
