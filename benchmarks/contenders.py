"""One outer step by jaxmaml, by plain JAX and by each rival, ready to be timed."""

import importlib
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml
from benchmarks import reporting
from benchmarks.cases import Case

RIVALS = ("torch_func", "higher_loop", "torchopt_loop", "learn2learn_loop")
NAMES = ("jaxmaml", "jaxmaml_mesh", "jaxmaml_one_thread", "plain_jax", *RIVALS)


class Contender(NamedTuple):
    """Something to time.

    Attributes:
      run: Takes `steps_per_run` outer steps and waits for them.
      steps_per_run: How many.
      result: `() -> (loss, gradients)` of the fixed tasks, in NumPy, to compare.
      compile_seconds: Until the first step could start.
      memory: Bytes beside parameters and tasks, and how they were measured.
    """

    run: Callable[[], Any]
    steps_per_run: int
    result: Callable[[], tuple[float, Any]]
    compile_seconds: float
    memory: Callable[[], tuple[int, str]]


def prepare(name: str, case: Case) -> Contender:
    """Build a contender. On sinusoids a run samples its tasks and updates the parameters; else it is the meta-step."""
    if name in RIVALS:
        return _rival(name, case)
    if name == "plain_jax":
        return _plain_jax(case)
    if name in _MESHES:
        return _jaxmaml(case, _MESHES[name])
    raise ValueError(f"The contenders are {', '.join(NAMES)}; got {name!r}.")


# The switches of jaxmaml that have to come before JAX's first computation.
_MESHES = {
    "jaxmaml": lambda: None,
    "jaxmaml_mesh": jaxmaml.task_mesh,
    "jaxmaml_one_thread": lambda: jaxmaml.task_mesh(1),
}


def _jaxmaml(case: Case, make_mesh: Callable[[], Any]) -> Contender:
    mesh = make_mesh()

    # The parameters' change under sgd(1) is the gradient.
    def learner(outer_optimizer):
        return jaxmaml.maml(
            case.loss_fn(),
            optax.sgd(case.step_size),
            outer_optimizer,
            num_inner_steps=case.num_inner_steps,
            remat=case.remat,
            mesh=mesh,
        )

    params, tasks = jax.tree.map(jnp.asarray, case.problem())
    step = learner(optax.sgd(1.0))
    state = step.init(params)

    def gradient(state, tasks):
        new, info = step.update(state, tasks)
        return jnp.mean(info.query_loss), jax.tree.map(jnp.subtract, state.params, new.params)

    compiled, seconds = _compile(gradient, state, tasks)
    memory = lambda: (reporting.temporaries(compiled), "XLA's temporaries")  # noqa: E731
    result = lambda: jax.device_get(compiled(state, tasks))  # noqa: E731
    if case.model != "mlp":
        return Contender(lambda: jax.block_until_ready(compiled(state, tasks)), 1, result, seconds, memory)

    trainer, count = learner(optax.adam(1e-3)), 500
    training = trainer.init(params)
    sample = jaxmaml.tasks.sinusoid(case.num_shots, case.num_queries)

    def train():
        options = {"num_steps": count, "steps_per_dispatch": count, "num_tasks": case.num_tasks, "progress": False}
        return jaxmaml.fit(trainer, training, sample, jax.random.key(0), **options)

    start = time.perf_counter()
    train()
    return Contender(train, count, result, time.perf_counter() - start, memory)


def _plain_jax(case: Case) -> Contender:
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
    compiled, seconds = _compile(jax.value_and_grad(meta_loss), params, tasks)
    memory = lambda: (reporting.temporaries(compiled), "XLA's temporaries")  # noqa: E731
    result = lambda: jax.device_get(compiled(params, tasks))  # noqa: E731
    if case.model != "mlp":
        return Contender(lambda: jax.block_until_ready(compiled(params, tasks)), 1, result, seconds, memory)

    state, count = [params, optimizer.init(params), jax.random.key(0)], 100
    trainer, seconds = _compile(train, *state)

    def run():
        for _ in range(count):
            *state[:], _ = trainer(*state)
        return jax.block_until_ready(state[0])

    return Contender(run, count, result, seconds, memory)


def _rival(name: str, case: Case) -> Contender:
    rival = importlib.import_module(f"benchmarks.rivals.{name}")
    params, tasks = case.problem()
    options = {"num_inner_steps": case.num_inner_steps, "step_size": case.step_size}
    step = rival.make_step(case.model, params, tasks, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    memory = lambda: (grown, "growth of the resident set")  # noqa: E731
    result = lambda: rival.as_numpy(case.model, *step())  # noqa: E731
    if case.model != "mlp":
        return Contender(step, 1, result, seconds, memory)
    counts = {"num_tasks": case.num_tasks, "num_shots": case.num_shots, "outer_step_size": 1e-3}
    train, count = rival.make_training(params, **counts, **options), 20

    def run():
        for _ in range(count):
            train()

    return Contender(run, count, result, seconds, memory)


def flat(tree: Any) -> np.ndarray:
    """The leaves of `tree` in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _compile(function: Callable, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return compiled, time.perf_counter() - start
