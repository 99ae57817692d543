"""Every algorithm as its paper has it, in plain JAX: Python loops over tasks and steps, `jax.grad`, and no jaxmaml.

Parameters are dictionaries of arrays, a task is a pair of batches, and `loss(params, batch)` is a scalar. Each
algorithm returns the meta-loss of `(params, learned)`, where `learned` is what the outer loop learns beside the
parameters, or the meta-gradient itself where it is not the gradient of a loss.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


def optax_rule(optimizer):
    """An optax transformation as `(init, update)` with something learned beside, which it does not have."""
    return (
        lambda learned, fast: optimizer.init(fast),
        lambda grads, state, fast, learned, step: optimizer.update(grads, state, fast),
    )


def rates_rule(of_steps=False):
    """Meta-SGD: a learned step size for each number; or, with `of_steps`, for each tensor and inner step."""

    def update(grads, state, fast, rates, step):
        own = {n: r[min(step, len(r) - 1)] if of_steps else r for n, r in rates.items()}
        return {n: -own[n] * g for n, g in grads.items()}, state

    return (lambda learned, fast: ()), update


def kronecker_rule(optimizer):
    """Meta-curvature: learned matrices along each way of a tensor, all axes but the last two being one."""

    def transformed(grad, matrices):
        ways = grad.shape if grad.ndim < 3 else (-1, *grad.shape[-2:])
        tensor = grad.reshape(ways)
        for way, matrix in enumerate(matrices):
            tensor = jnp.moveaxis(jnp.tensordot(matrix, tensor, (1, way)), 0, way)
        return tensor.reshape(grad.shape)

    def update(grads, state, fast, matrices, step):
        return optimizer.update({n: transformed(g, matrices[n]) for n, g in grads.items()}, state, fast)

    return (lambda learned, fast: optimizer.init(fast)), update


def svgd_rule(step_size, repulsion):
    """Particles along the first axis of every leaf move down the loss by each other's gradients, and apart."""

    def update(grads, state, fast, learned, step):
        number = len(next(iter(fast.values())))
        rows = jnp.concatenate([leaf.reshape(number, -1) for leaf in fast.values()], 1)
        scaled = number * jnp.concatenate([grads[n].reshape(number, -1) for n in fast], 1)
        squares = jnp.stack([jnp.stack([jnp.sum((a - b) ** 2) for a in rows]) for b in rows])
        bandwidth = jnp.maximum(jax.lax.stop_gradient(jnp.median(squares)) / jnp.log(number + 1.0), 1e-8)
        kernel = jnp.exp(-squares / bandwidth)
        moves = []
        for m in range(number):
            apart = [-2 / bandwidth * (rows[j] - rows[m]) * kernel[j, m] for j in range(number)]
            moves.append(sum(kernel[j, m] * scaled[j] - repulsion * apart[j] for j in range(number)))
        moves, updates = -step_size / number * jnp.stack(moves), {}
        for name, leaf in fast.items():
            size = leaf[0].size
            updates[name], moves = moves[:, :size].reshape(leaf.shape), moves[:, size:]
        return updates, state

    return (lambda learned, fast: ()), update


def path(loss, rule, params, learned, batches, moving, state=None, first_step=0, first_order=False):
    """The parameters after 0, 1, ... inner steps, of which step `k` sees `batches[k]`; and the rule's last state.

    A batch may be a function of the parameters of its step.
    """
    init, update = rule
    fast = {name: params[name] for name in moving}
    state = init(learned, fast) if state is None else state
    points = [params]
    for step, batch in enumerate(batches, start=first_step):
        here = points[-1]
        batch = batch(here) if callable(batch) else batch
        grads = jax.grad(lambda fast, here=here, batch=batch: loss({**here, **fast}, batch))(fast)
        if first_order:
            grads = {name: jax.lax.stop_gradient(g) for name, g in grads.items()}
        updates, state = update(grads, state, fast, learned, step)
        fast = {name: fast[name] + updates[name] for name in moving}
        points.append({**params, **fast})
    return points, state


def maml(loss, rule, num_steps, moving, start=lambda *args: args[0], first_order=False, weights=None, seen=None):
    """MAML, and with its arguments FOMAML, ANIL, BOIL, CAVIA, Warp-MAML, Proto-MAML, Meta-SGD and meta-curvature.

    `weights`: of the query losses after 0, 1, ... steps; by default the last one alone counts.
    `seen`: `task -> (key of the start, batches of the inner steps, batches of the query losses)`, of the parameters.
    """
    weights = [0.0] * num_steps + [1.0] if weights is None else weights

    def meta_loss(params, learned, tasks):
        total = 0.0
        for task in tasks:
            (key, batches, queries) = seen(task) if seen else (None, [task[0]] * num_steps, None)
            begin = start(params, task[0]) if key is None else start(params, task[0], key)
            points, _ = path(loss, rule, begin, learned, batches, moving, first_order=first_order)
            asked = [query(p) for query, p in zip(queries, points, strict=True)] if queries else [task[1]] * len(points)
            total += sum(w * loss(p, query) for w, p, query in zip(weights, points, asked, strict=True) if w)
        return total / len(tasks)

    return meta_loss


def half_square(params, constants):
    return 0.5 * sum(jnp.sum((params[n] - jax.lax.stop_gradient(constants[n])) ** 2) for n in params)


def reptile(loss, rule, num_steps, moving):
    """Half the squared distance to the adapted parameters, taken as constants."""

    def meta_loss(params, learned, tasks):
        ends = [path(loss, rule, params, learned, [support] * num_steps, moving)[0][-1] for support, _ in tasks]
        return sum(half_square(params, end) for end in ends) / len(tasks)

    return meta_loss


def chaser(loss, rule, num_steps, num_leader_steps, moving, start=lambda *args: args[0], first_order=False):
    """Bayesian MAML's: half the squared distance to a leader that goes on for more steps on support and query.

    A task may have the key of its start as its third part.
    """

    def meta_loss(params, learned, tasks):
        total = 0.0
        for support, query, *key in tasks:
            begin, batches = start(params, support, *key), [support] * num_steps
            points, state = path(loss, rule, begin, learned, batches, moving, first_order=first_order)
            both = jax.tree.map(lambda s, q: jnp.concatenate([s, q]), support, query)
            more = [both] * num_leader_steps
            leader, _ = path(loss, rule, points[-1], learned, more, moving, state, first_step=num_steps)
            total += half_square(points[-1], leader[-1])
        return total / len(tasks)

    return meta_loss


def joint_training(loss, start=lambda params, support: params):
    """The query loss before any inner step."""

    def meta_loss(params, learned, tasks):
        return sum(loss(start(params, support), query) for support, query in tasks) / len(tasks)

    return meta_loss


def maml_plus_plus(loss, num_steps, moving, weights, first_order=False):
    """Weighted query losses, learned rates for each tensor and step, and `norm`, a leaf with a value for each step."""

    def at(params, step):
        return {**params, "norm": params["norm"][min(step, num_steps - 1)]}

    def meta_loss(params, learned, tasks):
        total = 0.0
        for support, query in tasks:
            point, state = params, ()
            for step in range(num_steps):
                stepped = lambda p, batch, step=step: loss(at(p, step), batch)  # noqa: E731
                points, state = path(
                    stepped, rates_rule(True), point, learned, [support], moving, state, step, first_order=first_order
                )
                point = points[-1]
                total += weights[step] * stepped(point, query)
        return total / len(tasks)

    return meta_loss


def imaml_gradient(loss, rule, num_steps, moving, strength, params, task):
    """Of one task: `(I + H / strength)^{-1} grad L_query` at the end of the proximal inner loop, by a dense solve."""
    support, query = task

    def proximal(point, batch):
        return loss(point, batch) + 0.5 * strength * sum(jnp.sum((point[n] - params[n]) ** 2) for n in moving)

    end = path(proximal, rule, params, (), [support] * num_steps, moving)[0][-1]
    vector, unravel = ravel_pytree({n: end[n] for n in moving})
    right = jax.grad(lambda v: loss({**end, **unravel(v)}, query))(vector)
    hessian = jax.hessian(lambda v: loss({**end, **unravel(v)}, support))(vector)
    solved = jnp.linalg.solve(jnp.eye(len(vector)) + hessian / strength, right)

    def pulled_back(params):
        """The minimum is where `phi = theta - grad L(phi) / strength`; what does not move enters by both losses."""
        at = lambda v: {**params, **unravel(v)}  # noqa: E731
        begin, _ = ravel_pytree({n: params[n] for n in moving})
        inner = jax.grad(lambda v: loss(at(v), support))(vector)
        return loss(at(vector), query) + solved @ (begin - inner / strength)

    return jax.grad(pulled_back)(params)


def es_maml_gradient(loss, rule, num_steps, moving, std, num_pairs, seed, params, tasks):
    """Antithetic differences of the meta-loss of each task along Gaussian noise, drawn as the library draws it."""
    meta_loss = maml(loss, rule, num_steps, moving)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0), len(tasks))
    total = jax.tree.map(jnp.zeros_like, params)
    for task, key in zip(tasks, keys, strict=True):
        noise_key, _ = jax.random.split(key)
        for pair_key in jax.random.split(noise_key, num_pairs):
            noise = optax.tree.random_like(pair_key, (params, ()))[0]
            there, back = ({n: p + by * std * noise[n] for n, p in params.items()} for by in (1.0, -1.0))
            difference = (meta_loss(there, (), [task]) - meta_loss(back, (), [task])) / (2 * std)
            total = {n: t + difference * noise[n] / (num_pairs * len(tasks)) for n, t in total.items()}
    return total
