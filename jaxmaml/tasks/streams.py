"""Streams: signals whose character drifts, in chunks that are scored and then learned from."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.types import Batch, Task

AMPLITUDE = (0.5, 1.5)
FREQUENCY = (0.1, 1.0)
NUM_TONES = 2


def drifting_signals(
    num_chunks: int = 16, chunk_length: int = 16, *, drift: float = 0.01, noise_std: float = 0.02
) -> Callable[[chex.PRNGKey], Task]:
    r"""Build the sampler of one-dimensional signals whose amplitudes and frequencies drift, for online learning.

    A signal is `s_t = sum_i A_i(t) sin(p_i(t)) + noise` for `i = 1, 2`, where `p_i` advances by `f_i(t)` radians in a
    step from a uniform phase. At the start `A_i ~ U[0.5, 1.5]` and `log f_i ~ U[log 0.1, log 1]`: periods from 6.3 to
    63 steps. From then on `log A_i` and `log f_i` are random walks of normal steps of standard deviation `drift`, so
    that `n` steps later a frequency has changed by a factor of about `exp(drift sqrt(n))`.

    The signal is cut into chunks that follow each other. In each the next value is predicted: `targets` are `inputs`
    one step later, and so the last target of a chunk is the first input of the next one. The query has the same chunks
    as the support and one more. With `supports=jaxmaml.supports.stream()`, `queries=jaxmaml.supports.stream()` and
    `objective=jaxmaml.objectives.online()`, as many inner steps as there are chunks learn from one chunk each, and
    chunk `k` is scored before the step that learns from it.

    Args:
      num_chunks: `K`, the number of chunks to learn from; >= 1.
      chunk_length: The number of predictions in a chunk; >= 1.
      drift: The standard deviation of the steps of `log A_i` and `log f_i`; 0 for signals that do not drift.
      noise_std: The standard deviation of the normal noise on every value. Nothing predicts it: no mean squared error
        is below `noise_std^2` in the mean.

    Returns:
      `sample(key) -> Task` of `Batch(inputs, targets)`, which are `[K, chunk_length, 1]` in the support and
      `[K + 1, chunk_length, 1]` in the query; pure, for use inside `jit` and `vmap`.

    Raises:
      TypeError: If an argument is not a number.
      ValueError: If `num_chunks` or `chunk_length` < 1, or `drift` or `noise_std` < 0.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> sample = jaxmaml.tasks.drifting_signals(num_chunks=2, chunk_length=8)
      >>> tasks = jax.vmap(sample)(jax.random.split(jax.random.key(0), 4))
      >>> tasks.support.inputs.shape, tasks.query.inputs.shape
      ((4, 2, 8, 1), (4, 3, 8, 1))
      >>> model = jaxmaml.nn.GRU(num_hidden=4, num_outputs=1)
      >>> learner = jaxmaml.maml(
      ...     jaxmaml.mean_squared_error(model.apply), optax.sgd(0.1), optax.adam(1e-3), num_inner_steps=2,
      ...     supports=jaxmaml.supports.stream(), queries=jaxmaml.supports.stream(),
      ...     objective=jaxmaml.objectives.online())
      >>> state = learner.init(model.init(jax.random.key(1), jnp.zeros((1, 1))))
      >>> state, info = jax.jit(learner.update)(state, tasks)
      >>> info.diagnostics.shape                      # the loss of chunks 0 ... 2
      (4, 3)

    References:
      Sun et al., 2024, https://arxiv.org/abs/2407.04620 (test-time training, whose layers learn chunk by chunk)
    """
    checks.positive_int("num_chunks", num_chunks)
    checks.positive_int("chunk_length", chunk_length)
    checks.number("drift", drift, at_least=0.0)
    checks.number("noise_std", noise_std, at_least=0.0)
    num_steps = (num_chunks + 1) * chunk_length

    def sample(key: chex.PRNGKey) -> Task:
        amplitude_key, frequency_key, phase_key, walk_key, noise_key = jax.random.split(key, 5)
        amplitude = jax.random.uniform(amplitude_key, (1, NUM_TONES), minval=AMPLITUDE[0], maxval=AMPLITUDE[1])
        low, high = jnp.log(jnp.array(FREQUENCY))
        log_frequency = jax.random.uniform(frequency_key, (1, NUM_TONES), minval=low, maxval=high)
        phase = jax.random.uniform(phase_key, (1, NUM_TONES), maxval=2 * jnp.pi)
        steps = jax.random.normal(walk_key, (2, num_steps + 1, NUM_TONES))
        # From zero: the first value has what was drawn above.
        amplitude_walk, frequency_walk = drift * jnp.cumsum(steps.at[:, 0].set(0.0), axis=1)
        phases = phase + jnp.cumsum(jnp.exp(log_frequency + frequency_walk), axis=0)
        signal = jnp.sum(amplitude * jnp.exp(amplitude_walk) * jnp.sin(phases), axis=1)
        signal += noise_std * jax.random.normal(noise_key, signal.shape)

        chunks = Batch(*(part.reshape(num_chunks + 1, chunk_length, 1) for part in (signal[:-1], signal[1:])))
        return Task(support=jax.tree.map(lambda leaf: leaf[:-1], chunks), query=chunks)

    return sample
