"""Layers for models that are adapted to one task at a time: normalisation by batch statistics, identity layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jaxmaml import checks
from jaxmaml.execution.rewriting.switch import is_enabled
from jaxmaml.nn.normalisation import moments, normalised_layer, scaled


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    epsilon: float = 1e-3,
    num_support: int | None = None,
) -> jax.Array:
    r"""Normalise by the statistics of the batch at hand: transductive, without running averages.

    `(x - mean) / sqrt(var + epsilon) * scale + bias`, with mean and (biased) variance over all axes but the
    last. A prediction depends on the other examples of its batch. State the size of the query set with any result,
    since it changes the accuracy by percentage points.

    Args:
      x: Array `[..., C]`.
      scale: Array `[C]`; `None` for 1.
      bias: Array `[C]`; `None` for 0.
      epsilon: Added to the variance; 1e-3 as in the original MAML code.
      num_support: Use the statistics of only the first `num_support` examples, those of the support set; the outputs of
        the others then do not depend on each other. `None`, the default, uses all examples (transductive).
    Returns:
      Array like `x`.
    Raises:
      ValueError: If `scale` or `bias` is not `[C]`, or `num_support` is not in `1 ... len(x)`.
    Example:
      >>> import jax.numpy as jnp, jaxmaml
      >>> jaxmaml.nn.batch_norm(jnp.array([[1.0], [3.0]]), epsilon=0.0).tolist()
      [[-1.0], [1.0]]

    References:
      Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167
    """
    if num_support is not None and not 0 < num_support <= x.shape[0]:
        raise ValueError(f"`num_support` must be from 1 to the {x.shape[0]} examples, got {num_support}.")
    _, variance, centred = moments(x, num_support)
    return scaled(centred, variance, scale, bias, epsilon)


def inductive(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Build an `apply` that also takes `(images, support images)` and normalises by the statistics of the latter.

    Use it with `jaxmaml.tasks.with_support`, for support statistics instead of the query set's (transductive) ones.

    Args:
      apply: `(params, inputs, support=...) -> predictions`, such as `jaxmaml.nn.Conv4(...).apply`.
    Returns:
      `(params, inputs) -> predictions`.
    Example:
      >>> import jaxmaml
      >>> apply = jaxmaml.nn.inductive(jaxmaml.nn.Conv4.omniglot(num_ways=5).apply)
      >>> loss_fn = jaxmaml.cross_entropy(apply)
    """
    checks.function("apply", apply)

    def applied(params, inputs):
        if isinstance(inputs, tuple):
            return apply(params, inputs[0], support=inputs[1])
        return apply(params, inputs)

    return applied


class BatchNorm(linen.Module):
    """`batch_norm` with a learned shift and, with `use_scale`, a learned scale.

    The original MAML code shifts but does not scale. The arguments of a call beside the input are

    * `layer` and `pool`: the result is `pool(batch_norm(layer(x)))`; without a scale, on a CPU, all of `layer(x)` is
      never in memory at once: see `normalised_layer`;
    * `num_support`: that of `batch_norm`;
    * `defer`: the result is `(y, normalise)`, where `normalise(y)` is the normalised output, so that the next layer can
      normalise its own groups of examples;
    * `shift`: one number for each channel, such as the layer's bias, that is added to `layer(x)`, unless the batch's
      own mean cancels it.

    Statistics of other batches, such as running averages, are the variable collection `"batch_stats"`, as elsewhere in
    flax. If it is given, examples are normalised by it; if it is mutable, the batch's own statistics are written to it.

    Example:
      Averages over many batches, with which predictions do not depend on each other:

      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.Conv4.omniglot(num_ways=5, features=4)
      >>> images = jax.random.uniform(jax.random.key(0), (3, 10, 28, 28, 1))
      >>> params = model.init(jax.random.key(1), images[0])
      >>> averages = None
      >>> for batch in images:
      ...     _, new = model.apply(params, batch, mutable=["batch_stats"])
      ...     averages = new if averages is None else optax.incremental_update(new, averages, 0.1)
      >>> loss_fn = jaxmaml.cross_entropy(lambda params, x: model.apply({**params, **averages}, x))
      >>> float(loss_fn(params, jaxmaml.Batch(images[0], jnp.arange(10) % 5))[0]) > 0
      True
    """

    use_scale: bool = False
    epsilon: float = 1e-3

    @linen.compact
    def __call__(
        self,
        x: jax.Array,
        layer: Callable[[jax.Array], jax.Array] | None = None,
        pool: Callable[[jax.Array], jax.Array] | None = None,
        num_support: int | None = None,
        defer: bool = False,
        shift: jax.Array | None = None,
    ) -> Any:
        normed = x if layer is None else jax.eval_shape(layer, x)
        channels = normed.shape[-1:]
        scale = self.param("scale", linen.initializers.ones, channels, normed.dtype) if self.use_scale else None
        bias = self.param("bias", linen.initializers.zeros, channels, normed.dtype)
        pool = pool or (lambda y: y)
        writes = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        reads = self.has_variable("batch_stats", "mean") and not writes
        # Pooling commutes with normalisation only if its scale is positive.
        plain = scale is None and num_support is None and not writes and not reads
        if layer is not None and plain and is_enabled():
            pooled, normalise = normalised_layer(layer, x, bias, pool, self.epsilon)
            return (pooled, normalise) if defer else normalise(pooled)
        y = x if layer is None else layer(x)
        if shift is not None and (writes or reads):
            y = y + jnp.expand_dims(shift, tuple(range(y.ndim - 1)))
        normalised = self._whole(y, scale, bias, pool, num_support, writes, reads)
        return (normalised, lambda y: y) if defer else normalised

    def _whole(self, y, scale, bias, pool, num_support, writes, reads) -> jax.Array:
        if not writes and not reads:
            return pool(batch_norm(y, scale, bias, self.epsilon, num_support))
        names = ("mean", "var")
        if writes:
            for name, value in zip(names, moments(y, num_support), strict=False):
                self.put_variable("batch_stats", name, value)
        mean, variance = (self.get_variable("batch_stats", name) for name in names)
        centred = y - jnp.expand_dims(mean, tuple(range(y.ndim - 1)))
        return pool(scaled(centred, variance, scale, bias, self.epsilon))


def identity_dense(x: jax.Array, name: str) -> jax.Array:
    """A linear map of the last axis, initialised to the identity; call it in a compact method.

    Args:
      x: Array `[..., C]`.
      name: The name of the layer in the parameters; its kernel is `[C, C]`.
    Returns:
      Array like `x`.
    """

    def identity(key, shape, dtype=jnp.float32):
        return jnp.eye(*shape, dtype=dtype)

    return linen.Dense(x.shape[-1], use_bias=False, kernel_init=identity, name=name)(x)
