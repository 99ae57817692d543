"""Gradient descent with meta-learned step sizes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks, parameter_selection
from jaxmaml.rules.optax_rules import transform_rule
from jaxmaml.types import InnerRule, PyTree


def learned_rates(
    initial: float | tuple[float, float] = 0.01,
    *,
    per: str | Callable[[str], str] = "parameter",
    num_steps: int | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    transform: optax.GradientTransformation | None = None,
) -> InnerRule:
    r"""Build the rule `theta <- theta - alpha * grad` with `alpha` learned by the outer loop.

    Args:
      initial: The initial rates: a number, or `(low, high)` for uniform draws, as Meta-SGD's (0.005, 0.1).
      per: Whether each `"parameter"` has its own rate (Meta-SGD), each `"tensor"` (a leaf, such as a layer's kernel or
        its bias), or all share one `"scalar"`. Or a function that names the group of a leaf by its path, such as
        `lambda path: path.split("/")[0]`: each group has a rate.
      num_steps: Learn one rate for each of this number of inner steps; later steps reuse the last. `None`, the default,
        uses the same rate in all steps.
      bounds: `(low, high)`; after each outer step every rate is set to the nearest number between them. `None`, the
        default, lets rates become negative, as in the papers.
      seed: The seed of the uniform draws.
      transform: A transformation of the gradient before it is multiplied by the rates:
        `jaxmaml.clip_by_global_norm(10.0)` protects learned rates from a rare task with a large gradient, and
        `optax.scale_by_adam(eps_root=1e-8)` gives Adam with learned rates.

    Returns:
      An `InnerRule`. `state.rule_params` are the rates: of the leaves' shapes for `"parameter"`, a scalar for each leaf
      for `"tensor"`, a single scalar for `"scalar"`, a dictionary of scalars for groups; with a leading axis of
      `num_steps` if that is given.

    Raises:
      ValueError: If `per` is unknown, a count < 1, `initial` or `bounds` not two numbers of which the first is no
        larger, or `initial` not between `bounds`.
      TypeError: If `transform` is no optax transformation, or a group's name no string.

    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> rule = jaxmaml.rules.learned_rates(0.1, per="tensor", num_steps=3)
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
      >>> rule.init_params(params)["w"].shape
      (3,)
      >>> groups = jaxmaml.rules.learned_rates(
      ...     0.1, per=lambda path: "biases" if path == "b" else "others", bounds=(0.0, 1.0))
      >>> sorted(groups.init_params(params))
      ['biases', 'others']

    References:
      Li et al., 2017, https://arxiv.org/abs/1707.09835 (Meta-SGD)
      Antoniou et al., 2019, https://arxiv.org/abs/1810.09502 (per layer and step)
    """
    group_of = None if isinstance(per, str) else per
    if group_of is None:
        checks.one_of("per", per, ("parameter", "tensor", "scalar"))
    else:
        checks.function("per", group_of)
    if num_steps is not None:
        checks.positive_int("num_steps", num_steps)
    low, high = _range("initial", initial if isinstance(initial, tuple) else (initial, initial))
    if bounds is not None:
        lowest, highest = _range("bounds", bounds)
        if not lowest <= low <= high <= highest:
            raise ValueError(f"`initial` must be between `bounds`, {bounds}; got {initial!r}.")
    first = transform_rule(transform)
    steps = () if num_steps is None else (num_steps,)

    def init_params(params):
        if group_of is not None:
            params = _groups(params, group_of)
        elif per == "scalar":
            params = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))

        def rates(key, leaf):
            shape = steps + (leaf.shape if per == "parameter" else ())
            if low == high:
                return jnp.full(shape, low, leaf.dtype)
            return jax.random.uniform(key, shape, leaf.dtype, low, high)

        return jax.tree.unflatten(treedef, map(rates, keys, leaves))

    def update(grads, rule_state, params, rates, step, **extra):
        if num_steps is not None:
            rates = jax.tree.map(lambda rate: parameter_selection.value_at(rate, step), rates)
        if group_of is not None:
            rates = _of_leaves(rates, group_of, grads)
        elif per == "scalar":
            rates = jax.tree.map(lambda _: rates, grads)
        passed, rule_state = first.update(grads, rule_state, params, (), step, **extra)
        return jax.tree.map(lambda rate, g: -rate.astype(g.dtype) * g, rates, passed), rule_state

    def project(rates):
        return rates if bounds is None else _clipped(rates, *bounds)

    return InnerRule(init_params, lambda rates, params: first.init((), params), update, project)


def _range(name: str, values: tuple[float, ...]) -> tuple[float, float]:
    if not isinstance(values, tuple) or len(values) != 2:
        number_or = "a number or " if name == "initial" else ""
        raise ValueError(f"`{name}` must be {number_or}(low, high), got {values!r}.")
    for value in values:
        checks.number(name, value)
    if values[0] > values[1]:
        raise ValueError(f"`{name}` must be (low, high) with low <= high, got {values!r}.")
    return values


def _groups(params: PyTree, per: Callable[[str], str]) -> dict[str, jax.Array]:
    """A scalar for each group of leaves, of their dtype."""
    members: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = parameter_selection.path_name(path)
        name = per(path)
        if not isinstance(name, str):
            raise TypeError(f"`per(path)` must be the name of a group, a string; got {name!r} for {path!r}.")
        members.setdefault(name, []).append(leaf)
    return {name: jnp.zeros((), jnp.result_type(*leaves)) for name, leaves in members.items()}


def _of_leaves(rates: dict[str, jax.Array], group_of: Callable[[str], str], leaves: PyTree) -> PyTree:
    """For each leaf the rate of its group."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: rates[group_of(parameter_selection.path_name(path))], leaves
    )


def _clipped(rates: PyTree, low: float, high: float) -> PyTree:
    return jax.tree.map(lambda rate: jnp.clip(rate, low, high), rates)
