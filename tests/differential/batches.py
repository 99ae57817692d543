"""What the losses see on the axes `supports` and `queries`: in plain JAX, and as the value of the axis.

The keys are those that the library documents: a task's key is split in five, and the key of step `k` is
`fold_in(key, k)`.
"""

import functools

import jax
import jax.numpy as jnp

import jaxmaml
from tests.differential import terms

SUPPORTS = ("minibatches", "stream", "rollout", "keyed")
QUERIES = ("stream", "rollout", "keyed")
SIZE = 2


def rollout(params, data, key):
    """Data whose inputs depend on the parameters and on chance."""
    (leaf,) = [params[name] for name in sorted(params)[:1]]
    noise = jax.random.normal(key, data["x"].shape)
    return {**data, "x": data["x"] + 0.1 * jnp.tanh(jnp.sum(leaf)) + 0.1 * noise}


def noisy(batch, key):
    return {**batch, "x": batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)}


def task_keys(seed, num_tasks):
    """The keys of the tasks of the first outer step."""
    return list(jax.random.split(jax.random.fold_in(jax.random.key(seed), 0), num_tasks))


def seen(choice, data, num_steps, plan_key, key):
    """The batches of steps `0 ... num_steps - 1`, each as a function of the parameters there."""
    if choice == "whole":
        return [lambda params: data] * num_steps
    if choice == "stream":
        return [
            functools.partial(lambda k, params: {n: leaf[k] for n, leaf in data.items()}, k) for k in range(num_steps)
        ]
    if choice == "minibatches":
        number = len(data["x"])
        rounds = jax.random.split(plan_key, max(1, -(-num_steps * SIZE // number)))
        order = jnp.concatenate([jax.random.permutation(each, number) for each in rounds])
        rows = [order[k * SIZE : (k + 1) * SIZE] for k in range(num_steps)]
        return [functools.partial(lambda r, params: {name: leaf[r] for name, leaf in data.items()}, r) for r in rows]
    keys = [jax.random.fold_in(key, k) for k in range(num_steps)]
    if choice == "rollout":
        return [functools.partial(lambda k, params: jax.lax.stop_gradient(rollout(params, data, k)), k) for k in keys]
    return [functools.partial(lambda k, params: noisy(data, jax.random.split(k)[1]), k) for k in keys]


def of_task(supports, queries, num_steps, task):
    """`(key of the start, batches of the inner steps, batches of the query losses after 0 ... K steps)`."""
    support, query, key = task
    start, support_plan, support_key, query_plan, query_key = jax.random.split(key, 5)
    batches = seen(supports, support, num_steps, support_plan, support_key)
    return start, batches, seen(queries, query, num_steps + 1, query_plan, query_key)


def axis(choice):
    """The value of the axis."""
    return {
        "whole": lambda: None,
        "stream": jaxmaml.supports.stream,
        "minibatches": lambda: jaxmaml.supports.minibatches(SIZE),
        "rollout": lambda: jaxmaml.supports.collect(rollout),
        "keyed": jaxmaml.supports.keyed,
    }[choice]()


def unkeyed(loss):
    """A loss that also takes a batch with its key, from which it draws noise."""

    def keyed(params, batch):
        return loss(params, noisy(batch.batch, batch.key) if isinstance(batch, jaxmaml.supports.Keyed) else batch)

    return keyed


def tasks_of(program):
    """Pairs of batches, with a leading axis of slices where the axis is a stream."""
    count = program.num_inner_steps + 1
    pairs = [terms.tasks_of(program.num_tasks, program.num_examples, program.seed + 10_000 * k) for k in range(count)]

    def part(choice, index, which):
        if choice != "stream":
            return pairs[0][index][which]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(slices[index][which] for slices in pairs))

    return [(part(program.supports, i, 0), part(program.queries, i, 1)) for i in range(program.num_tasks)]
