"""Primitives whose implementation is chosen when they are compiled, after differentiation and batching.

Whether `vmap` gives each task its own kernel, and which convolutions a derivative leads to, is known only then, and
the fastest implementation depends on it.
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
      name: The name in printed programs.
      implement: A function of arrays to one array. `one_thread` says whether the device has a single thread.
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
    """The implementation of `eqn` as a function of its operands, if its primitive was made here; else `None`."""
    implement = _IMPLEMENTATIONS.get(eqn.primitive)
    return implement and functools.partial(implement, one_thread=one_thread, **eqn.params)
