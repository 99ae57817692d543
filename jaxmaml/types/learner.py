"""A learner: its three functions, and what it says of itself."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxmaml.types.axes import Supports
from jaxmaml.types.data import AdaptTrace, MetaInfo, MetaState, PyTree, Task


class _Init(Protocol):
    def __call__(self, params: PyTree) -> MetaState: ...


class _Adapt(Protocol):
    def __call__(
        self,
        state: MetaState,
        support: Any,
        *,
        num_inner_steps: int | None = None,
        key: Any = None,
        observe: Callable[..., Any] | None = None,
    ) -> tuple[PyTree, AdaptTrace]: ...


class _Update(Protocol):
    def __call__(self, state: MetaState, tasks: Task) -> tuple[MetaState, MetaInfo]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What a learner is: `learner.spec`.

    Attributes:
      algorithm: The name of the factory, such as `"maml"`.
      axes: The choices on all axes, with the defaults: a NamedTuple whose fields are those of `jaxmaml.Axes`.
      num_inner_steps: The number of inner steps in training.
      needs_key: Whether a task draws random numbers, so that `adapt` and `evaluate` need a key.
      replace: `(**axes) -> MetaLearner`, the same learner with other choices, such as `spec.replace(mesh=None)`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxmaml
      >>> learner = jaxmaml.fomaml(lambda w, batch: jnp.sum((w - batch) ** 2), optax.sgd(0.1), optax.sgd(0.1),
      ...     num_inner_steps=2)
      >>> learner.spec.algorithm, learner.spec.axes.derivative, learner.spec.needs_key
      ('fomaml', 'first_order', False)
      >>> learner
      MetaLearner(fomaml, num_inner_steps=2, derivative='first_order')
    """

    algorithm: str
    axes: Any
    num_inner_steps: int
    needs_key: bool
    replace: Callable[..., Any]

    @property
    def mesh(self) -> Any:
        """The devices that share the tasks; `None` for a single one."""
        return self.axes.mesh

    def described(self) -> dict[str, str]:
        """The algorithm, the number of inner steps and the axes that are not at their default, as text."""
        defaults = type(self.axes)()._asdict()
        axes = {
            name: _plain(value)
            for name, value in self.axes._asdict().items()
            if value is not defaults[name] and _plain(value) != _plain(defaults[name])
        }
        return {"algorithm": self.algorithm, "num_inner_steps": str(self.num_inner_steps), **axes}

    def __repr__(self) -> str:
        values = self.described()
        rest = (f"{name}={value}" for name, value in values.items() if name != "algorithm")
        return ", ".join([values["algorithm"], *rest])


def _plain(value: Any) -> str:
    """`repr`, with functions by their names, so that it is the same in every process."""
    if isinstance(value, Supports):
        value = value.at
    if hasattr(value, "__qualname__"):
        return value.__qualname__.split(".<locals>")[0]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class MetaLearner(NamedTuple):
    """A meta-learning algorithm: three pure functions.

    None of them is jitted: compose them with `jax.jit`, `jax.vmap`, `jax.grad` and `jax.lax.scan`.

    Attributes:
      init: `params -> MetaState`.
      adapt: `(state, support, *, num_inner_steps=None, key=None, observe=None) -> (fast_params, AdaptTrace)`: adapt to
        one task. `num_inner_steps` defaults to that of meta-training. `key` is needed where `spec.needs_key`, and then
        the same key gives the same bits. `observe(fast_params, step, key)` is evaluated after 0, 1, ... inner steps and
        recorded; it may leave out `key`, or `step` and `key`.
      update: `(state, tasks) -> (MetaState, MetaInfo)`: one outer step over a batch of tasks. Its keys are derived from
        the axis `seed` and from `state.step`.
      spec: What the learner is: its algorithm, axes and number of inner steps; `None` for a learner of your own.
    """

    init: _Init
    adapt: _Adapt
    update: _Update
    spec: Spec | None = None

    def __repr__(self) -> str:
        return f"MetaLearner({self.spec or 'of three functions'})"
