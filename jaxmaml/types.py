"""The containers and protocols that every other module uses."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax

#: A pytree of arrays.
PyTree = Any

#: `loss_fn(params, batch) -> loss` or `(loss, aux)`; `loss` is a floating-point scalar.
LossFn = Callable[[PyTree, Any], Any]


class Batch(NamedTuple):
    """Labelled examples: the batch type that the library's own task families produce.

    The core accepts any pytree as a batch; this one is a convenience.

    Attributes:
      inputs: Array `[num_examples, ...]`, or a pytree of them.
      targets: Array `[num_examples, ...]`; integer class labels or regression targets.
    """

    inputs: Any
    targets: jax.Array


class WeightedBatch(NamedTuple):
    r"""Labelled examples with weights, of which zeros mark padding: tasks of different sizes become of one shape.

    The library's losses take the weighted mean `sum_i w_i l_i / sum_i w_i` over the examples `i` with weights `w` and
    losses `l`, in which the contents of examples of weight zero have no effect, even if they are NaN or labels out of
    range. A loss of your own has to do so itself; `fit` and `evaluate` refuse one whose value padding changes, and also
    models that normalise by statistics of the batch.

    Attributes:
      inputs: Array `[num_examples, ...]`, or a pytree of them.
      targets: Array `[num_examples, ...]`; integer class labels or regression targets.
      weights: Floating-point array `[num_examples]`: 0 for padding, and any non-negative number otherwise, of which at
        least one is positive. Where they are traced, so that this cannot be checked, a batch of zeros has a loss of
        NaN.

    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> loss_fn = jaxmaml.mean_squared_error(lambda w, x: w * x)
      >>> x, y = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, 0.0])
      >>> float(loss_fn(2.0, jaxmaml.WeightedBatch(x, y, weights=jnp.array([1.0, 3.0, 0.0]))))
      1.0
    """

    inputs: Any
    targets: jax.Array
    weights: jax.Array


class Task(NamedTuple):
    """A task: a support batch to adapt on, and a query batch on which the adapted parameters are evaluated.

    With a leading axis on every leaf it is a batch of tasks.

    Attributes:
      support: Any pytree of arrays; the batch of `loss_fn` in the inner loop.
      query: Any pytree of arrays; the batch of `loss_fn` in the outer loop.

    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> x = jnp.ones((4, 10, 1))                      # 4 tasks, 10 examples each
      >>> tasks = jaxmaml.Task(support=(x, x), query=(x, x))
      >>> tasks.support[0].shape
      (4, 10, 1)

    References:
      Vinyals et al., 2016, https://arxiv.org/abs/1606.04080 (support and query sets)
    """

    support: Any
    query: Any


class MetaState(NamedTuple):
    """The state of meta-training: everything that an outer step changes.

    Attributes:
      step: Number of outer steps taken, int32 scalar.
      params: The initial parameters, a pytree of floating-point arrays.
      rule_params: The meta-learned parameters of the inner rule; `()` for an optax transformation.
      opt_state: The state of the outer optimizer.
    """

    step: jax.Array
    params: PyTree
    rule_params: PyTree
    opt_state: optax.OptState


class MetaInfo(NamedTuple):
    """Metrics of an outer step; losses are in the units of `loss_fn` (nats for cross-entropy).

    Attributes:
      query_loss: Query loss of each task after adaptation, `[num_tasks]`. Their mean is the meta-loss that the step
        minimises, unless the algorithm has another objective.
      support_loss: Support loss before each inner step, `[num_tasks, num_inner_steps]`.
      grad_norm: Euclidean norm of the meta-gradient, scalar.
      aux: `loss_fn`'s auxiliary output on the query, leaves `[num_tasks, ...]`; `()` without one.
      diagnostics: Quantities of one algorithm, leaves `[num_tasks, ...]`, such as the residual of an implicit solve;
        `()` for most algorithms.
    """

    query_loss: jax.Array
    support_loss: jax.Array
    grad_norm: jax.Array
    aux: Any
    diagnostics: Any = ()


class Outcome(NamedTuple):
    """Metrics of one task that an objective returns beside the scalar to differentiate. See `MetaInfo`."""

    query_loss: jax.Array
    support_loss: jax.Array
    aux: Any
    diagnostics: Any = ()


class AdaptTrace(NamedTuple):
    """What `adapt` records at each inner step.

    Attributes:
      support_loss: Support loss before each inner step, `[num_inner_steps]`.
      aux: `loss_fn`'s auxiliary output at each of these, leaves `[num_inner_steps, ...]`.
      observed: What `observe` returned after 0, 1, ... inner steps, leaves
        `[num_inner_steps + 1, ...]`; `()` without `observe`.
    """

    support_loss: jax.Array
    aux: Any
    observed: Any


class InnerRule(NamedTuple):
    """How an inner gradient becomes an update: an optax transformation with meta-learned parameters.

    Attributes:
      init_params: `params -> rule_params`, the initial values of the meta-learned parameters.
      init: `(rule_params, params) -> rule_state`, called at the beginning of each adaptation.
      update: `(grads, rule_state, params, rule_params, step, **extra) -> (updates, rule_state)`;
        `updates` are added to the parameters. `extra` holds optax's conventional `value` (the
        support loss), `grad` and `value_fn`.
      project: `rule_params -> rule_params`, applied after each outer step, such as bounds of learned rates; by default
        nothing is changed.

    Example:
      A learned step size for every parameter (Meta-SGD, Li et al., 2017, https://arxiv.org/abs/1707.09835):

      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> meta_sgd = jaxmaml.InnerRule(
      ...     init_params=lambda params: jax.tree.map(lambda p: jnp.full_like(p, 0.01), params),
      ...     init=lambda rates, params: (),
      ...     update=lambda grads, state, params, rates, step, **extra: (
      ...         jax.tree.map(lambda rate, g: -rate * g, rates, grads), state),
      ... )
    """

    init_params: Callable[[PyTree], PyTree]
    init: Callable[[PyTree, PyTree], Any]
    update: Callable[..., tuple[PyTree, Any]]
    project: Callable[[PyTree], PyTree] = lambda rule_params: rule_params


class Supports(NamedTuple):
    """What a loss sees at each inner step: the value of the axes `supports` and `queries`; see `jaxmaml.supports`.

    Both functions may leave out their last argument `key` if they draw nothing.

    Attributes:
      plan: `(data, num_steps, key) -> plan`, called once for each task before the first inner step: for checks that a
        traced step cannot make, and for what is drawn once. `data` is the task's support or query.
      at: `(plan, data, step, fast_params, key) -> batch`, the batch of `loss_fn` at inner step `step`, a traced
        integer. `fast_params` are all parameters, as `loss_fn` gets them.

    Example:
      A window of the support that moves:

      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> window = jaxmaml.supports.Supports(
      ...     plan=lambda data, num_steps: (),
      ...     at=lambda plan, data, step, fast_params: jax.lax.dynamic_slice_in_dim(data, step, 3))
      >>> learner = jaxmaml.maml(
      ...     lambda w, batch: jnp.mean((w - batch) ** 2), optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=4,
      ...     supports=window)
      >>> fast_params, trace = learner.adapt(learner.init(jnp.zeros(())), jnp.arange(6.0))
      >>> trace.support_loss.shape
      (4,)
    """

    plan: Callable[..., Any]
    at: Callable[..., Any]


#: The name of the batches that `supports.collect` makes, which every rematerialisation keeps.
COLLECTED_BATCH = "collected_batch"

#: The name (`jax.ad_checkpoint.checkpoint_name`) of the inner gradients, which `remat="gradients"` keeps.
INNER_GRADIENT = "inner_gradient"


class StepLoop(NamedTuple):
    """How the loop over inner steps is run, and what its derivative keeps.

    Attributes:
      run: `(step, carry, length) -> (carry, outs)`, equal to `jax.lax.scan(step, carry, jnp.arange(length))`.
      keeps_all: `length -> bool`, whether the derivative of that loop keeps everything and recomputes nothing.
    """

    run: Callable[..., tuple[PyTree, PyTree]]
    keeps_all: Callable[[int], bool]


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
