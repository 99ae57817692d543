"""Operations that stay whole through derivatives and batching, and are implemented last, when their shapes are known.

`vmap` over tasks may or may not give each its own kernel, and a derivative turns one convolution into another: only
when all of that is done is it known which implementation is fastest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxmaml.jax_internals import Primitive, new_primitive, plain_type

_IMPLEMENTATIONS: dict[Primitive, Callable] = {}


def primitive(name: str, implement: Callable, shape_and_dtype: Callable, **rules: Any) -> Primitive:
    """A primitive that becomes `implement(*operands, one_thread=False, **params)` when it is compiled.

    Args:
      name: In printed programs.
      implement: Of arrays, to one array. `one_thread`: whether the device has one thread only.
      shape_and_dtype: `(*avals, **params) -> (shape, dtype)` of the result.
      **rules: `jvp`, `transpose` and `batch`, as `new_primitive` takes them.
    """
    made = new_primitive(
        name,
        implement,
        lambda *avals, **params: plain_type(*shape_and_dtype(*avals, **params)),
        evaluate=lambda *operands, **params: _compiled(implement, tuple(params.items()))(*operands),
        **rules,
    )
    _IMPLEMENTATIONS[made] = implement
    return made


@functools.lru_cache(maxsize=1024)
def _compiled(implement, params):
    return jax.jit(functools.partial(implement, **dict(params)))


def implementation(eqn: Any, one_thread: bool = False) -> Callable | None:
    """What computes `eqn` from its operands, if its primitive is one of these."""
    implement = _IMPLEMENTATIONS.get(eqn.primitive)
    return implement and functools.partial(implement, one_thread=one_thread, **eqn.params)
