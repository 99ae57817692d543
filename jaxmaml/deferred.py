"""Operations that stay whole through derivatives and batching, and are implemented last, when their shapes are known.

`vmap` over tasks may or may not give each its own kernel, and a derivative turns one convolution into another: only
when all of that is done is it known which implementation is fastest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import mlir

from jaxmaml.sums import inlined

_IMPLEMENTATIONS: dict[jex_core.Primitive, Callable] = {}


def primitive(name: str, implement: Callable, shape_and_dtype: Callable) -> jex_core.Primitive:
    """A primitive that becomes `implement(*operands, one_thread=False, **params)` when it is compiled.

    Args:
      name: In printed programs.
      implement: Of arrays, to one array. `one_thread`: whether the device has one thread only.
      shape_and_dtype: `(*avals, **params) -> (shape, dtype)` of the result.
    """
    made = jex_core.Primitive(name)
    made.def_impl(lambda *operands, **params: _compiled(implement, tuple(params.items()))(*operands))
    made.def_abstract_eval(lambda *avals, **params: _plain_type(*shape_and_dtype(*avals, **params)))
    mlir.register_lowering(made, mlir.lower_fun(implement, multiple_results=False))
    _IMPLEMENTATIONS[made] = implement
    return made


@functools.lru_cache(maxsize=1024)
def _compiled(implement, params):
    return jax.jit(functools.partial(implement, **dict(params)))


def implementation(eqn: Any, one_thread: bool = False) -> Callable | None:
    """What computes `eqn` from its operands, if its primitive is one of these."""
    implement = _IMPLEMENTATIONS.get(eqn.primitive)
    return implement and functools.partial(implement, one_thread=one_thread, **eqn.params)


def implemented(jaxpr: Any, one_thread: bool) -> Any:
    """`jaxpr` with these operations implemented; what two of them compute alike, such as windows, computed once."""
    eqns, made, same = [], {}, {}

    def renamed(variables):
        return [same.get(var, var) if isinstance(var, jex_core.Var) else var for var in variables]

    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=renamed(eqn.invars))
        function = implementation(eqn, one_thread)
        if function is None:
            eqns.append(eqn)
            continue
        for part in inlined(function, eqn.invars, eqn):
            part = part.replace(invars=renamed(part.invars))
            outvars = made.setdefault(_computation(part), part.outvars)
            if outvars is part.outvars:
                eqns.append(part)
            same.update(zip(part.outvars, outvars, strict=True))
    return jaxpr.replace(eqns=eqns, outvars=renamed(jaxpr.outvars))


def _computation(eqn):
    """Equal for equations that compute the same."""
    operands = [var if isinstance(var, jex_core.Var) else (str(var.val), str(var.aval)) for var in eqn.invars]
    key = eqn.primitive, *operands, *eqn.params.items()
    try:
        hash(key)
    except TypeError:
        return id(eqn)
    return key


def is_plain(x: jax.Array) -> bool:
    """Whether the type of `x` is its shape and dtype: no axes of `shard_map` that it varies over, no sharding."""
    return jax.typeof(x).strip_weak_type() == _plain_type(x.shape, x.dtype)


def _plain_type(shape, dtype):
    return _type_of_zeros(tuple(shape), jnp.dtype(dtype), jax.sharding.get_abstract_mesh())


@functools.lru_cache(maxsize=4096)
def _type_of_zeros(shape, dtype, mesh):
    """Of an array made here: within `shard_map`, its type knows the mesh."""
    del mesh
    return jax.make_jaxpr(lambda: jnp.zeros(shape, dtype))().out_avals[0]
