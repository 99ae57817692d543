"""A function with equations of its program replaced, in whatever loops it has."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.core
from jax.extend import core as jex_core


def rewritten(function: Callable, replaced: Callable, prepared: Callable = lambda jaxpr: jaxpr) -> Callable:
    """`function` as it is once it is traced, after all derivatives and batching of its own, with other equations.

    Args:
      function: Of pytrees of arrays.
      replaced: `equation -> equations` that compute its results, or `None` to leave it.
      prepared: `jaxpr -> jaxpr`, what is done to each before its equations are replaced.
    """

    def wrapped(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        jaxpr = _Rewriting(replaced, prepared).jaxpr(closed.jaxpr)
        return jax.tree.unflatten(
            jax.tree.structure(shapes), jax.core.eval_jaxpr(jaxpr, closed.consts, *jax.tree.leaves(args))
        )

    return wrapped


class _Rewriting:
    """Remembers what it did before, so that what was shared (and compiled once) stays so."""

    def __init__(self, replaced: Callable[..., Iterable | None], prepared: Callable):
        self.replaced, self.prepared = replaced, prepared
        self.done = {}

    def jaxpr(self, jaxpr):
        if id(jaxpr) not in self.done:
            whole = self.prepared(jaxpr)
            eqns = [new for eqn in whole.eqns for new in self.equations(eqn)]
            # With the original, whose identity would else be free for another one.
            self.done[id(jaxpr)] = jaxpr, whole.replace(eqns=eqns)
        return self.done[id(jaxpr)][1]

    def equations(self, eqn) -> Iterator:
        others = self.replaced(eqn)
        if others is not None:
            yield from others
        elif next(jex_core.jaxprs_in_params(eqn.params), None) is None:
            yield eqn
        else:
            yield eqn.replace(params={name: self.inside(param) for name, param in eqn.params.items()})

    def inside(self, param):
        if isinstance(param, jex_core.Jaxpr):
            return self.jaxpr(param)
        if isinstance(param, jex_core.ClosedJaxpr):
            return jex_core.ClosedJaxpr(self.jaxpr(param.jaxpr), param.consts)
        return tuple(map(self.inside, param)) if type(param) is tuple else param
