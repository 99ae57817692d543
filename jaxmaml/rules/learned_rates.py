"""Gradient descent with meta-learned step sizes."""

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.rules.optax_rules import transform_rule
from jaxmaml.types import InnerRule


def learned_rates(
    initial: float | tuple[float, float] = 0.01,
    *,
    per: str = "parameter",
    num_steps: int | None = None,
    seed: int = 0,
    transform: optax.GradientTransformation | None = None,
) -> InnerRule:
    r"""Build the rule `theta <- theta - alpha * grad` with `alpha` learned by the outer loop.

    Args:
      initial: The initial rates: a number, or `(low, high)` for uniform draws, as Meta-SGD's (0.005, 0.1).
      per: Whether each `"parameter"` has its own rate (Meta-SGD), each `"tensor"` (a leaf, such as a layer's kernel or
        its bias), or all share one `"scalar"`. A rate may become negative.
      num_steps: Learn one rate for each of this number of inner steps; later steps reuse the last. `None`, the default,
        uses the same rate in all steps.
      seed: The seed of the uniform draws.
      transform: A transformation of the gradient before it is multiplied by the rates:
        `jaxmaml.clip_by_global_norm(10.0)` protects learned rates from a rare task with a large gradient, and
        `optax.scale_by_adam(eps_root=1e-8)` gives Adam with learned rates.

    Returns:
      An `InnerRule`. `state.rule_params` are the rates: of the leaves' shapes for `"parameter"`, a scalar for each leaf
      for `"tensor"`, a single scalar for `"scalar"`; with a leading axis of `num_steps` if that is given.

    Raises:
      ValueError: If `per` is unknown, a count < 1, or `initial` not two numbers of which the first is no larger.
      TypeError: If `transform` is no optax transformation.

    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> rule = jaxmaml.rules.learned_rates(0.1, per="tensor", num_steps=3)
      >>> rule.init_params({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})["w"].shape
      (3,)

    References:
      Li et al., 2017, https://arxiv.org/abs/1707.09835 (Meta-SGD)
      Antoniou et al., 2019, https://arxiv.org/abs/1810.09502 (per layer and step)
    """
    checks.one_of("per", per, ("parameter", "tensor", "scalar"))
    if num_steps is not None:
        checks.positive_int("num_steps", num_steps)
    bounds = initial if isinstance(initial, tuple) else (initial, initial)
    for value in bounds:
        checks.number("initial", value)
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(f"`initial` must be a number or (low, high), got {initial!r}.")
    low, high = bounds
    first = transform_rule(transform)
    steps = () if num_steps is None else (num_steps,)

    def init_params(params):
        leaves, treedef = jax.tree.flatten(params)
        dtype = jnp.result_type(*leaves)
        if per == "scalar":
            leaves, treedef = [jnp.zeros((), dtype)], jax.tree.structure(0)
        keys = jax.random.split(jax.random.key(seed), len(leaves))

        def rates(key, leaf):
            shape = steps + (leaf.shape if per == "parameter" else ())
            if low == high:
                return jnp.full(shape, low, leaf.dtype)
            return jax.random.uniform(key, shape, leaf.dtype, low, high)

        return jax.tree.unflatten(treedef, map(rates, keys, leaves))

    def update(grads, rule_state, params, rates, step, **extra):
        if num_steps is not None:
            index = jnp.minimum(step, num_steps - 1)
            rates = jax.tree.map(lambda rate: rate[index], rates)
        if per == "scalar":
            rates = jax.tree.map(lambda _: rates, grads)
        passed, rule_state = first.update(grads, rule_state, params, (), step, **extra)
        return jax.tree.map(lambda rate, g: -rate.astype(g.dtype) * g, rates, passed), rule_state

    return InnerRule(init_params, lambda rates, params: first.init((), params), update)
