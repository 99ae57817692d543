"""Stein variational gradient descent: particles that approximate a posterior together."""

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.rules.optax_rules import transform_rule
from jaxmaml.types import InnerRule


def svgd(
    step_size: float, repulsion: float = 1.0, *, transform: optax.GradientTransformation | None = None
) -> InnerRule:
    r"""Build the rule of Stein variational gradient descent, which shares gradients among particles and repels them.

    With particles `phi_1 ... phi_M` along the leading axis of every leaf, and `k(a, b) = exp(-||a - b||^2 / h)`,

        phi_m <- phi_m - step_size / M sum_j [k(phi_j, phi_m) grad L(phi_j) - repulsion grad_{phi_j} k(phi_j, phi_m)],

    where `h` is the median of the squared distances over `log(M + 1)`, treated as a constant by differentiation. If `L`
    is the mean negative log-likelihood of `N` examples, `repulsion = 1/N` gives the posterior of a flat prior.

    Args:
      step_size: > 0.
      repulsion: The weight of the kernel's gradient, which is the temperature of the posterior; >= 0.
      transform: A transformation of each particle's gradient, such as `jaxmaml.clip_by_global_norm(10.0)`.
    Returns:
      An `InnerRule` without learned parameters, for gradients of the particles' mean loss.
    Raises:
      ValueError: If `step_size` <= 0 or `repulsion` < 0.
      TypeError: If `transform` is no optax transformation.
    References:
      Liu and Wang, 2016, https://arxiv.org/abs/1608.04471; Kim et al., 2018, https://arxiv.org/abs/1806.03836
    """
    checks.positive("step_size", step_size)
    checks.number("repulsion", repulsion, at_least=0.0)
    first = transform_rule(transform)

    def init(rule_params, params):
        checks.num_examples("An ensemble of parameters", params)
        return jax.vmap(lambda particle: first.init((), particle))(params)

    def update(grads, rule_state, params, rule_params, step, **extra):
        leaves, treedef = jax.tree.flatten(params)
        number = leaves[0].shape[0]
        particles = _rows(leaves, number)
        # The gradient is of the particles' mean loss; each has its own.
        own = jax.tree.map(lambda g: number * g, grads)
        passed, rule_state = jax.vmap(lambda g, s, p: first.update(g, s, p, (), step))(own, rule_state, params)
        gradients = _rows(jax.tree.leaves(passed), number)
        # Distances by products: around their mean, so that close particles do not drown in rounding.
        centred = particles - jnp.mean(particles, 0, keepdims=True)
        products = centred @ centred.T
        lengths = jnp.diagonal(products)
        squares = jnp.maximum(lengths[:, None] + lengths[None] - 2.0 * products, 0.0)
        bandwidth = jax.lax.stop_gradient(jnp.median(squares)) / jnp.log(number + 1.0)
        bandwidth = jnp.maximum(bandwidth, 1e-8)  # Equal particles have no distance to measure by.
        kernel = jnp.exp(-squares / bandwidth)
        # The gradient of k(phi_j, phi_m) by phi_j is -2/h (phi_j - phi_m) k.
        away = -2.0 / bandwidth * (kernel @ centred - jnp.sum(kernel, 1, keepdims=True) * centred)
        moves = -step_size / number * (kernel @ gradients - repulsion * away)
        sizes = [leaf[0].size for leaf in leaves]
        columns = jnp.split(moves, list(_offsets(sizes)), axis=1)
        moved = [c.reshape(leaf.shape).astype(leaf.dtype) for c, leaf in zip(columns, leaves, strict=True)]
        return jax.tree.unflatten(treedef, moved), rule_state

    return InnerRule(lambda params: (), init, update)


def _rows(leaves: list[jax.Array], number: int) -> jax.Array:
    return jnp.concatenate([leaf.reshape(number, -1) for leaf in leaves], axis=1)


def _offsets(sizes: list[int]):
    total = 0
    for size in sizes[:-1]:
        total += size
        yield total
