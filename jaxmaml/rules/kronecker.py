"""Meta-curvature: inner gradients transformed by learned matrices, one for each way of a tensor."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.rules.optax_rules import as_inner_rule
from jaxmaml.types import InnerRule


def kronecker(inner_optimizer: optax.GradientTransformation) -> InnerRule:
    r"""Build a rule that multiplies a gradient by learned Kronecker factors, and gives it to an optax transformation.

    A dense kernel's gradient `G [in, out]` becomes `M_in G M_out^T`; a convolution's `[*window, in, out]` is multiplied
    along window, inputs and outputs; a bias's along itself. The factors start as identities, so that
    training starts from plain `inner_optimizer`.

    Args:
      inner_optimizer: What takes the transformed gradient, such as `optax.sgd(0.01)`.
    Returns:
      An `InnerRule`; `state.rule_params` has a tuple of square matrices for each leaf.
    Raises:
      TypeError: If `inner_optimizer` is no optax transformation.
    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> rule = jaxmaml.rules.kronecker(optax.sgd(0.01))
      >>> [factor.shape for factor in rule.init_params({"w": jnp.ones((3, 3, 8, 16))})["w"]]
      [(9, 9), (8, 8), (16, 16)]

    References:
      Park and Oliva, 2019, https://arxiv.org/abs/1902.03356
    """
    checks.optimizer("inner_optimizer", inner_optimizer)
    base = as_inner_rule(inner_optimizer)

    def init_params(params):
        return jax.tree.map(lambda leaf: tuple(jnp.eye(n, dtype=leaf.dtype) for n in _ways(leaf.shape)), params)

    def update(grads, rule_state, params, factors, step, **extra):
        transformed = jax.tree.map(_transform, grads, factors)
        return base.update(transformed, rule_state, params, (), step, **{**extra, "grad": transformed})

    return InnerRule(init_params, lambda factors, params: base.init((), params), update)


def _ways(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape with all axes but the last two as one."""
    return shape if len(shape) < 3 else (math.prod(shape[:-2]), *shape[-2:])


def _transform(grad: jax.Array, factors: tuple[Any, ...]) -> jax.Array:
    tensor = grad.reshape(_ways(grad.shape))
    for way, factor in enumerate(factors):
        tensor = jnp.moveaxis(jnp.tensordot(factor, tensor, axes=(1, way)), 0, way)
    return tensor.reshape(grad.shape)
