"""Meta-curvature: inner gradients multiplied by learned matrices, one along each axis of a tensor."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.rules.optax_rules import as_inner_rule
from jaxmaml.types import InnerRule


def kronecker(inner_optimizer: optax.GradientTransformation) -> InnerRule:
    r"""Build a rule that multiplies a gradient by learned Kronecker factors and passes it to an optax transformation.

    The gradient `G [in, out]` of a dense kernel becomes `M_in G M_out^T`. That of a convolution, `[*window, in,
    out]`, is multiplied along window, inputs and outputs, and that of a bias along its only axis. The factors are
    initialised to identity matrices, so that training starts from plain `inner_optimizer`.

    Args:
      inner_optimizer: The transformation of the multiplied gradient, such as `optax.sgd(0.01)`.
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
    """A tensor's shape with all axes but the last two flattened into one."""
    return shape if len(shape) < 3 else (math.prod(shape[:-2]), *shape[-2:])


def _transform(grad: jax.Array, factors: tuple[Any, ...]) -> jax.Array:
    tensor = grad.reshape(_ways(grad.shape))
    for way, factor in enumerate(factors):
        tensor = jnp.moveaxis(jnp.tensordot(factor, tensor, axes=(1, way)), 0, way)
    return tensor.reshape(grad.shape)
