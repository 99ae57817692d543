"""What a user may give for an axis of a learner: inner rules and supports."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmaml.types.data import PyTree


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
