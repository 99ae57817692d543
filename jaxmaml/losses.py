"""Loss functions `(params, batch) -> loss` from any `apply(params, inputs)`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmaml import checks
from jaxmaml.types import Batch, LossFn, PyTree, WeightedBatch

#: `(params, inputs) -> predictions`.
Apply = Callable[..., Any]


def mean_squared_error(apply: Apply) -> LossFn:
    """Build the regression loss `(params, batch) -> mean (apply(params, inputs) - targets)^2`.

    Args:
      apply: `(params, inputs) -> predictions`.
    Returns:
      `loss_fn` for a `Batch` whose targets have the shape of the predictions, or a `WeightedBatch`, over whose examples
      the mean is weighted.
    Raises:
      ValueError: In use, if the shapes differ (broadcasting would compare every pair).
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> loss_fn = jaxmaml.mean_squared_error(lambda w, x: w * x)
      >>> float(loss_fn(2.0, jaxmaml.Batch(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))))
      1.0
    """
    checks.function("apply", apply)

    def loss_fn(params: PyTree, batch: Batch | WeightedBatch) -> jax.Array:
        inputs, targets, weights = examples(batch)
        predictions = _array("apply(params, inputs)", apply(params, inputs))
        if predictions.shape != targets.shape:
            raise ValueError(
                f"`apply` must return predictions of the targets' shape {targets.shape}, got {predictions.shape}."
            )
        return weighted_mean(jnp.square(predictions - targets), weights)

    return loss_fn


def reconstruction(apply: Apply, *, peak: float = 1.0) -> LossFn:
    r"""Build the mean squared error of a field or an image, with the peak signal-to-noise ratio beside it.

    `psnr = 10 log10(peak^2 / error)`: with a peak of 1, an error of 0.01 is 20 dB, and half the error is 3 dB more. It
    is infinite where the error is zero. Over tasks, the mean of the ratios is not the ratio of the mean error.

    Args:
      apply: `(params, inputs) -> predictions`, such as colours at coordinates.
      peak: The largest value that a target can have; 1 for colours in [0, 1].
    Returns:
      `(params, batch) -> (error, {"psnr": psnr})` for a batch as in `mean_squared_error`; psnr is in dB.
    Raises:
      ValueError: If `peak` is not > 0; in use, as `mean_squared_error`.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> loss_fn = jaxmaml.reconstruction(lambda w, x: w * x)
      >>> error, aux = loss_fn(1.0, jaxmaml.Batch(jnp.array([0.2, 0.5]), jnp.array([0.3, 0.4])))
      >>> round(float(aux["psnr"]), 3)
      20.0
    """
    squared_error = mean_squared_error(apply)
    checks.positive("peak", peak)

    def loss_fn(params: PyTree, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        error = squared_error(params, batch)
        # A metric: its derivative, infinite where the error is zero, belongs to no gradient.
        return error, {"psnr": 20.0 * math.log10(peak) - 10.0 * jnp.log10(jax.lax.stop_gradient(error))}

    return loss_fn


def cross_entropy(apply: Apply) -> LossFn:
    """Build the classification loss, mean softmax cross-entropy in nats, with the accuracy beside it.

    Args:
      apply: `(params, inputs) -> logits [num_examples, num_ways]`.
    Returns:
      `(params, batch) -> (loss, {"accuracy": accuracy})` for a `Batch` whose targets are integer
      labels `[num_examples]` in `[0, num_ways)`; accuracy is a fraction of 1. A label out of range makes the
      loss and its gradient NaN. Of a `WeightedBatch`, both means are weighted, and labels of weight zero may be any.
    Raises:
      ValueError: In use, if logits and labels do not fit; TypeError: if labels are not integers.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> loss_fn = jaxmaml.cross_entropy(lambda w, x: w * x)
      >>> batch = jaxmaml.Batch(jnp.array([[9.0, 0.0], [8.0, 1.0]]), jnp.array([0, 1]))
      >>> float(loss_fn(1.0, batch)[1]["accuracy"])
      0.5
    """
    checks.function("apply", apply)

    def loss_fn(params: PyTree, batch: Batch | WeightedBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs, labels, weights = examples(batch)
        logits = _array("apply(params, inputs)", apply(params, inputs))
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"`targets` must be integer labels, got dtype {labels.dtype}.")
        if logits.ndim != labels.ndim + 1 or logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"`apply` must return logits [num_examples, num_ways] for labels of shape {labels.shape}, "
                f"got {logits.shape}."
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # Out of range, -1 would count from the end. A product, so that the gradient is NaN as well, and not that of the
        # other examples.
        in_range = (labels >= 0) & (labels < logits.shape[-1])
        losses = losses * jnp.where(in_range, 1.0, jnp.nan).astype(losses.dtype)
        # argmax takes a NaN for the largest: a dead model would be right now and then.
        is_right = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(losses)
        loss = weighted_mean(losses, weights)
        return loss, {"accuracy": weighted_mean(is_right.astype(loss.dtype), weights)}

    return loss_fn


def ensemble(loss_fn: LossFn) -> LossFn:
    """Build the mean of `loss_fn`, and of its aux, over particles along the leading axis of every parameter.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)`, of one particle.
    Returns:
      `(particles, batch) -> (loss, aux)`.
    Raises:
      ValueError: In use, if the parameters have different leading axes.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> loss_fn = jaxmaml.ensemble(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> float(loss_fn(jnp.array([0.0, 2.0]), jnp.array([0.0, 0.0]))[0])
      2.0
    """
    checks.function("loss_fn", loss_fn)
    whole_loss = checks.with_checked_output(loss_fn)

    def mean_loss(particles: PyTree, batch: Any) -> tuple[jax.Array, Any]:
        checks.num_examples("An ensemble of parameters", particles)
        outputs = jax.vmap(whole_loss, in_axes=(0, None))(particles, batch)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), outputs)

    return mean_loss


def weighted_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """`sum_i w_i v_i / sum_i w_i` over examples along the first axis, and the plain mean over other axes.

    Without weights it is the plain mean. With a sum of weights of zero it is NaN, as is its gradient.
    """
    if weights is None:
        return jnp.mean(values)
    # In float32 at least: a count of examples in bfloat16 is not exact.
    wide = jnp.promote_types(values.dtype, jnp.float32)
    each = jnp.mean(values.astype(wide), axis=tuple(range(1, values.ndim)))
    weights = weights.astype(wide)
    total = jnp.sum(weights)
    # Where all weights are zero, all values stay, so that the gradient is NaN as well.
    mean = jnp.sum(weights * jnp.where((weights > 0) | ~(total > 0), each, 0.0)) / total
    return mean.astype(values.dtype) if jnp.issubdtype(values.dtype, jnp.floating) else mean


def without_padding(batch: WeightedBatch) -> WeightedBatch:
    """`batch` with the contents of its first real example in those of weight zero.

    Whatever is computed of them is then as finite as for the real ones, so that a weight of zero removes it from
    values and from gradients; zero times NaN would not.
    """
    is_real = batch.weights > 0
    first = jnp.argmax(is_real)

    def fill(leaf):
        return jnp.where(is_real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, leaf[first][None])

    return batch._replace(inputs=jax.tree.map(fill, batch.inputs), targets=jax.tree.map(fill, batch.targets))


def examples(batch: Any) -> tuple[Any, jax.Array, jax.Array | None]:
    """Inputs and targets, and the weights of a `WeightedBatch`, whose padding is replaced; `None` without weights."""
    if isinstance(batch, WeightedBatch):
        checks.weighted("batch", batch)
        if batch.weights.ndim != 1:
            raise ValueError(f"`batch.weights` must be [num_examples], got shape {tuple(batch.weights.shape)}.")
        return without_padding(batch)
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise TypeError(
            "`batch` must be (inputs, targets), such as a jaxmaml.Batch, or a jaxmaml.WeightedBatch, got "
            f"{type(batch).__name__}."
        )
    return batch[0], _array("targets", batch[1]), None


def _array(name: str, value: Any) -> jax.Array:
    if not hasattr(value, "dtype"):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}.")
    return value
