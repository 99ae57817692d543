"""The refusal of losses and models whose value depends on the padding of a `WeightedBatch`."""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.jax_internals import Tracer
from jaxmaml.training.samplers import Sampler
from jaxmaml.types import LossFn, MetaLearner, MetaState, Task, WeightedBatch

_WAYS_OUT = (
    'Normalise each example by itself (`nn.Conv4(normalisation="layer")` or "group"), write a weighted form of the '
    "normalisation, or draw tasks of equal sizes."
)


def check_drawn(
    learner: MetaLearner, state: MetaState, sample_task: Sampler, key: Any, loss_fn: LossFn | None = None
) -> None:
    """As `check`, of the task that `sample_task` draws with `key`; nothing is drawn where no task is padded."""
    if not _is_traced(state, sample_task, key) and _is_padded(jax.eval_shape(sample_task, key)):
        check(learner, state, _drawn(sample_task, key), loss_fn)


def check(learner: MetaLearner, state: MetaState, task: Task, loss_fn: LossFn | None = None) -> None:
    """Refuse a loss that depends on examples of weight zero; without effect where something is traced.

    Half of the examples of a batch are kept. The loss of the kept ones has to equal the loss of a batch in which others
    follow them with weights of zero. So what ignores the weights is found, and what normalises by statistics of the
    batch, even if the contents of padding are replaced before.

    Args:
      learner: The learner, whose loss is evaluated at the start of an adaptation.
      state: Its state.
      task: One task; batches that are no `WeightedBatch` are not looked at.
      loss_fn: A loss of its own for the query set, as of `evaluate`.
    Raises:
      ValueError: If the loss moves by more than rounding.
    """
    if _is_traced(state, task):
        return
    if _has_padding(task.support):
        _compare(learner, None, state, task.support, task.support, "support")
    if _has_padding(task.query):
        if loss_fn is not None:
            _compare(learner, loss_fn, state, task.support, task.query, "query")
        elif _supports(learner) is None:  # What it sees is its data, and the query may be that.
            _compare(learner, None, state, task.query, task.query, "query")


@jax.jit
def _drawn(sample_task: Sampler, key: Any) -> Task:
    return sample_task(key)


def _has_padding(batch: Any) -> bool:
    return isinstance(batch, WeightedBatch) and batch.weights.shape[-1] > 1


def _supports(learner: MetaLearner) -> Any:
    return getattr(getattr(getattr(learner, "spec", None), "axes", None), "supports", None)


def _is_traced(*values: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def _is_padded(task: Any) -> bool:
    return isinstance(task, Task) and any(isinstance(batch, WeightedBatch) for batch in task)


def _compare(learner, loss_fn, state, support, batch, name) -> None:
    if batch.weights.ndim > 1 and batch is not support:  # The slices of a stream, which the loss sees one by one.
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
    # Of fewer examples, minibatches draw others.
    dropping = loss_fn is not None or _supports(learner) is None
    try:
        found = _losses(learner, loss_fn, dropping, state, support, batch)
    except (TypeError, ValueError):
        if not dropping:
            raise
        # A model of a fixed number of examples: then with other contents in place of fewer examples.
        found = _losses(learner, loss_fn, False, state, support, batch)
    without, padded = map(float, found)
    tolerance = min(math.sqrt(jnp.finfo(found[0].dtype).eps), 0.03) * max(abs(without), abs(padded))
    if math.isfinite(without) and not abs(without - padded) <= tolerance:
        raise ValueError(
            f"`loss_fn` must not change with the padding of a jaxmaml.WeightedBatch: on examples of a {name} it was "
            f"{without:.6g}, and {padded:.6g} with further examples of weight zero. Either it does not use "
            "`batch.weights` as the weights of a mean, as the library's losses do, or the model normalises by "
            f"statistics of the batch, which padding would be part of. {_WAYS_OUT}"
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(learner, loss_fn, dropping, state, support, batch) -> tuple[jax.Array, jax.Array]:
    """The loss of some examples, and that of the same with padding."""
    kept, unchanged, padded = _halves(batch)

    def loss(batch):
        draws = getattr(getattr(learner, "spec", None), "needs_key", False)
        adapt = functools.partial(learner.adapt, **({"key": jax.random.key(0, impl="threefry2x32")} if draws else {}))
        with jax.default_matmul_precision("highest"):  # So that rounding is not mistaken for an effect of padding.
            if loss_fn is None:
                return adapt(state, batch, num_inner_steps=1)[1].support_loss[0]
            whole = checks.with_checked_output(loss_fn)
            _, trace = adapt(state, support, num_inner_steps=1, observe=lambda fast: whole(fast, batch)[0])
            return trace.observed[0]

    return loss(kept if dropping else unchanged), loss(padded)


def _halves(batch: WeightedBatch) -> tuple[WeightedBatch, WeightedBatch, WeightedBatch]:
    """Half of the examples; these and others of weight zero; these and others of weight zero and other contents."""
    if batch.weights.ndim > 1:  # The slices of a stream, say.
        return cast(Any, jax.vmap(_halves)(batch))
    size = batch.weights.shape[0]
    is_real = batch.weights > 0
    # Real examples, again and again where there are too few.
    rows = jnp.argsort(~is_real, stable=True)[jnp.arange(size) % jnp.maximum(jnp.sum(is_real), 1)]
    real = jax.tree.map(lambda leaf: leaf[rows], batch)
    kept = jax.tree.map(lambda leaf: leaf[: size // 2], real)
    is_kept = jnp.arange(size) < size // 2

    def other(leaf):
        changed = 2 * leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.roll(leaf, 1, axis=0)
        return jnp.where(is_kept.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, changed)

    unchanged = real._replace(weights=jnp.where(is_kept, real.weights, 0.0))
    inputs, targets = jax.tree.map(other, real[:2])
    return kept, unchanged, WeightedBatch(inputs, targets, unchanged.weights)
