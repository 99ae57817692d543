"""Fingerprints of programs and arrays, by which a run recognises its own checkpoints."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml.jax_internals import ClosedJaxpr, Jaxpr, Literal
from jaxmaml.types import PyTree

# Of a larger array, such as a data set's images, this many evenly spaced numbers are hashed.
_NUMBERS = 1 << 20


def of_program(function: Callable[..., Any], *args: Any) -> str:
    """A digest of the operations and constants of `function(*args)`, without file names and line numbers."""
    closed = jax.make_jaxpr(function)(*args)
    text = re.sub(r"0x[0-9a-f]+|/\S+", "", str(closed))
    return _digest(text, _constants(closed))


def of_arrays(tree: PyTree) -> str:
    """A digest of the values in `tree`; of a large array, some evenly spaced values are hashed."""
    return _digest("", jax.tree.leaves(tree))


def _digest(text: str, arrays: Any) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        numbers = np.asarray(array)
        digest.update(f"{numbers.dtype}{numbers.shape}".encode())
        digest.update(np.ascontiguousarray(numbers.reshape(-1)[:: 1 + numbers.size // _NUMBERS]).tobytes())
    return digest.hexdigest()[:16]


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of a program at every level of nesting, whose values the printed program lacks."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for eqn in jaxpr.eqns:
        yield from (operand.val for operand in eqn.invars if isinstance(operand, Literal))
        inside = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program)
        for program in filter(_is_program, inside):
            yield from _constants(program)


def _is_program(x: Any) -> bool:
    return isinstance(x, (ClosedJaxpr, Jaxpr))
