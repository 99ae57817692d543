"""The only module that uses JAX's less stable interfaces: its programs (jaxprs), primitives and flags.

All other modules use JAX's public functions. The README says with which versions of JAX the tests run.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from jaxmaml.types import PyTree

ClosedJaxpr = jex_core.ClosedJaxpr
Jaxpr = jex_core.Jaxpr
Literal = jex_core.Literal
Primitive = jex_core.Primitive
Tracer = jax.core.Tracer
Var = jex_core.Var
Zero = ad.Zero
jaxprs_in_params = jex_core.jaxprs_in_params
is_undefined_primal = ad.is_undefined_primal

DOT_GENERAL = jex_core.primitives.dot_general_p
CONVOLUTION = jex_core.primitives.conv_general_dilated_p
MAX = jex_core.primitives.max_p
MIN = jex_core.primitives.min_p
REDUCE_MAX = jex_core.primitives.reduce_max_p
REDUCE_MIN = jex_core.primitives.reduce_min_p
CUMMAX = jex_core.primitives.cummax_p
CUMMIN = jex_core.primitives.cummin_p
CUSTOM_JVP = jex_core.primitives.custom_jvp_call_p
CUSTOM_VJP = jex_core.primitives.custom_vjp_call_p


class Program(NamedTuple):
    """A traced function: `program(constants, *args)` evaluates it. It holds no array and no tracer.

    Attributes:
      jaxpr: The jaxpr of the flattened constants and arguments, without values for the constants.
      returned: The tree structure of the result.
    """

    jaxpr: Any
    returned: Any

    def __call__(self, constants: list[Any], *args: PyTree) -> PyTree:
        flat = jax.core.eval_jaxpr(self.jaxpr, (), *constants, *jax.tree.leaves(args))
        # A result that is a constant of the program may be a Python number.
        flat = [
            jnp.asarray(x, jax.typeof(x).dtype) if isinstance(var, Literal) else x
            for x, var in zip(flat, self.jaxpr.outvars, strict=True)
        ]
        return jax.tree.unflatten(self.returned, flat)


def traced(function: Callable[..., PyTree], *args: PyTree) -> tuple[Program, list[Any]]:
    """`function` as a program, and the arrays and tracers that it closes over as explicit constants.

    A function with a custom derivative must not close over tracers, which would have no derivative, would outlive their
    trace, and would be kept in JAX's caches.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    # JAX 0.12 keeps the constants' values in the program itself.
    jaxpr = closed.jaxpr.replace(invars=[*closed.jaxpr.constvars, *closed.jaxpr.invars], constvars=[])
    return Program(jaxpr, jax.tree.structure(shapes)), closed.consts


def evaluated(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of an equation, evaluated at other operands."""
    inputs = {var: x for var, x in zip(eqn.invars, operands, strict=True) if isinstance(var, Var)}
    empty = jax.make_jaxpr(lambda: ())().jaxpr
    alone = empty.replace(invars=list(inputs), outvars=eqn.outvars, eqns=[eqn])
    return jax.core.eval_jaxpr(alone, (), *inputs.values())


def new_primitive(
    name: str,
    implement: Callable[..., Any],
    abstract: Callable[..., Any],
    *,
    jvp: Callable[..., Any],
    batch: Callable[..., Any],
    transpose: Callable[..., Any] | None = None,
    evaluate: Callable[..., Any] | None = None,
    multiple_results: bool = False,
) -> Any:
    """A primitive that is lowered as the JAX function `implement`.

    Args:
      name: The name in printed programs.
      implement: The function that is compiled.
      abstract: `(*avals, **params) -> types of the results`.
      jvp, batch, transpose: The rules, in the form that `jax.interpreters` expects.
      evaluate: The function that is called outside of `jit`; `implement` by default.
      multiple_results: Whether it returns a list.
    """
    made = jex_core.Primitive(name)
    made.multiple_results = multiple_results
    made.def_impl(evaluate or implement)
    made.def_abstract_eval(abstract)
    mlir.register_lowering(made, mlir.lower_fun(implement, multiple_results=multiple_results))
    ad.primitive_jvps[made] = jvp
    batching.primitive_batchers[made] = batch
    if transpose is not None:
        ad.primitive_transposes[made] = transpose
    return made


def _batch_tie(operands, axes, *, number):
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)

    def batched(x, axis):
        return jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)

    tied = itertools.starmap(batched, zip(operands[:number], axes[:number], strict=True))
    return tie_p.bind(*tied, *operands[number:], number=number), (0,) * number


tie_p = new_primitive(
    "tie",
    lambda *operands, number: list(operands[:number]),
    lambda *avals, number: list(avals[:number]),
    jvp=lambda primals, tangents, number: (tie_p.bind(*primals, number=number), tangents[:number]),
    batch=_batch_tie,
    multiple_results=True,
)


def tie(tree: PyTree, to: PyTree) -> PyTree:
    """`tree` itself, but batched by `vmap` if any leaf of `to` is batched.

    For an argument that `vmap` does not batch, `jax.custom_vjp` sums the cotangents of its rule over the examples. That
    is right only if each output has a cotangent for each example. The single cotangent of an output that is not batched
    would be counted once for each example (JAX 0.12 refuses such programs). Each output of such a function is therefore
    tied to all of its arguments.
    """
    leaves, treedef = jax.tree.flatten(vary(tree, like=to))
    return jax.tree.unflatten(treedef, tie_p.bind(*leaves, *jax.tree.leaves(to), number=len(leaves)))


def vary(tree: PyTree, like: PyTree) -> PyTree:
    """`tree`, marked as varying over all axes of `jax.shard_map` (with `check_vma`) that a leaf of `like` varies over.

    If the data vary and the parameters do not, JAX sums the gradient with respect to the parameters over the devices.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(like)))

    def varied(leaf):
        missing = axes - _varying(leaf)
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(varied, tree) if axes else tree


def _varying(leaf: Any) -> frozenset:
    return jax.typeof(leaf).mat.varying


def explicit_axes(x: jax.Array) -> tuple[str, ...]:
    """The mesh axes in the type of `x`, which arrays on a mesh of Explicit axes have."""
    sharding = jax.typeof(x).sharding
    return tuple(
        name for part in sharding.spec if part is not None for name in ([part] if isinstance(part, str) else part)
    )


def is_plain(x: jax.Array) -> bool:
    """Whether the type of `x` has only a shape and a dtype: no varying axis and no explicit sharding."""
    aval = jax.typeof(x)
    return aval.strip_weak_type() == plain_type(aval.shape, aval.dtype)


def plain_type(shape: tuple[int, ...], dtype: Any) -> Any:
    """The abstract value of a plain array of this shape and dtype, in the current mesh."""
    return _type_of_zeros(tuple(shape), jnp.dtype(dtype), jax.sharding.get_abstract_mesh())


@functools.lru_cache(maxsize=4096)
def _type_of_zeros(shape, dtype, mesh):
    del mesh
    return jax.make_jaxpr(lambda: jnp.zeros(shape, dtype))().out_avals[0]


def is_symbolic_zero(x: Any) -> bool:
    """Whether `x` is the placeholder by which a custom rule learns that a tangent or cotangent is zero."""
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def instantiate(x: Any) -> Any:
    """The array of zeros for a symbolic zero; anything else unchanged."""
    return jnp.zeros(x.shape, x.dtype) if is_symbolic_zero(x) else x


# Packages whose custom rules are the true derivatives of their functions, and where they are installed.
_TRUSTED = tuple(
    (pathlib.Path(str(file)).parents[1], prefix)
    for file, prefix in ((jax.__file__, "jax."), (optax.__file__, "optax.losses."), (__file__, "jaxmaml."))
)


def untrusted_rules(jaxpr: Any) -> Iterator[str]:
    """Names and source locations of the custom rules in `jaxpr` that are not known to be true derivatives."""
    for eqn in jaxpr.eqns:
        if eqn.primitive in (CUSTOM_JVP, CUSTOM_VJP) and not _is_trusted(eqn):
            yield _debug_info(eqn).func_src_info
        for inner in jaxprs_in_params(eqn.params):
            yield from untrusted_rules(inner)


def _debug_info(eqn):
    function = eqn.params["call_jaxpr"]
    return getattr(function, "jaxpr", function).debug_info


def _is_trusted(eqn) -> bool:
    """Whether a trusted package defines both the rule and its function.

    Both conditions matter: `jax.custom_jvp(jnp.floor)` attaches a user's rule to a function of JAX. A `custom_vjp` is
    never trusted, because it has no forward mode.
    """
    rule = getattr(eqn.params.get("jvp_jaxpr_fun"), "debug_info", None)
    if eqn.primitive is not CUSTOM_JVP or rule is None or trusted_module(rule.func_filename) is None:
        return False
    function = _debug_info(eqn)
    module = trusted_module(function.func_filename)
    return isinstance(getattr(module, function.func_src_info.split(" at ")[0], None), jax.custom_jvp)


def package_of(eqn: Any) -> str | None:
    """The trusted package that defines the function with a custom rule that `eqn` calls, if one does."""
    module = trusted_module(_debug_info(eqn).func_filename)
    return module and module.__name__.split(".")[0]


def trusted_module(filename: str | None):
    """The loaded module at `filename`, if it is in a package whose rules are true derivatives."""
    for root, package in _TRUSTED:
        path = pathlib.Path(filename or "")
        if root in path.parents:
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if name.startswith(package):
                return sys.modules.get(name)
    return None


def flag(name: str, default: Any = None) -> Any:
    """The value of one of JAX's configuration flags."""
    return getattr(jax.config, name, default)


def set_flag(name: str, value: Any) -> None:
    """Set one of JAX's configuration flags.

    Raises:
      RuntimeError: If it is too late for that: JAX has started.
    """
    jax.config.update(name, value)
