"""Functions with some equations of their traced program replaced, also inside loops and branches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxmaml.jax_internals import ClosedJaxpr, Jaxpr, Program, Var, jaxprs_in_params, traced


def rewritten(
    function: Callable[..., Any],
    replacement: Callable[[Any], Callable[..., Any] | None],
    skip: Sequence[Any] = (),
) -> Callable[..., Any]:
    """`function` with equations of its traced program replaced; `grad` and `vmap` inside it are already applied there.

    Args:
      function: A function of pytrees of arrays.
      replacement: `equation -> function`, where that function computes the equation's result from its operands, or
        `equation -> None` to keep the equation. Equations of that function are replaced in turn, except those of the
        same primitive.
      skip: Primitives whose inner programs are left unchanged.
    """

    def wrapped(*args):
        program, constants = traced(function, *args)
        jaxpr = _Rewriting(replacement, skip).jaxpr(program.jaxpr)
        return Program(jaxpr, program.returned)(constants, *args)

    return wrapped


class _Rewriting:
    """Caches rewritten programs, so that an inner program which is shared, and compiled once, stays shared."""

    def __init__(self, replacement: Callable[[Any], Callable[..., Any] | None], skip: Sequence[Any]):
        self.replacement, self.skip = replacement, skip
        self.done = {}

    def jaxpr(self, jaxpr):
        if id(jaxpr) not in self.done:
            eqns = [new for eqn in jaxpr.eqns for new in self.equations(eqn)]
            # The original is kept too: once it were deleted, another program could have its `id`.
            self.done[id(jaxpr)] = jaxpr, jaxpr.replace(eqns=eqns)
        return self.done[id(jaxpr)][1]

    def equations(self, eqn) -> Iterator:
        function = self.replacement(eqn)
        if function is not None:
            for new in _inlined(function, eqn):
                yield from (self.equations(new) if new.primitive is not eqn.primitive else [new])
        elif eqn.primitive in self.skip or next(iter(jaxprs_in_params(eqn.params)), None) is None:
            yield eqn
        else:
            yield eqn.replace(params={name: self.inside(param) for name, param in eqn.params.items()})

    def inside(self, param):
        if isinstance(param, Jaxpr):
            return self.jaxpr(param)
        if isinstance(param, ClosedJaxpr):
            return ClosedJaxpr(self.jaxpr(param.jaxpr), param.consts)
        return tuple(map(self.inside, param)) if type(param) is tuple else param


def _inlined(function: Callable[..., Any], eqn: Any) -> Iterator:
    """The equations of `function`, with the operands and the results of `eqn`."""
    new = jax.make_jaxpr(function)(*[var.aval for var in eqn.invars]).jaxpr
    names = dict(zip([*new.invars, *new.outvars], [*eqn.invars, *eqn.outvars], strict=True))
    for part in new.eqns:
        yield part.replace(
            invars=[names.get(var, var) if isinstance(var, Var) else var for var in part.invars],
            outvars=[names.get(var, var) for var in part.outvars],
            source_info=eqn.source_info,
            ctx=eqn.ctx,
        )
