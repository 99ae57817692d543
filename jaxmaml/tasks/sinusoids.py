"""Sinusoid regression, the first experiment of the MAML paper."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.types import Batch, Task

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, jnp.pi)
INPUT = (-5.0, 5.0)


def sinusoid(
    num_shots: int = 10, num_queries: int = 10, *, with_parameters: bool = False, noise_std: float = 0.0
) -> Callable[[chex.PRNGKey], Task]:
    r"""Build the sampler of the paper's sinusoid tasks.

    A task is `y = A sin(x - p)` with `A ~ U[0.1, 5]` and `p ~ U[0, pi]`; its points have `x ~ U[-5, 5]`, and targets
    without noise, or with normal noise of standard deviation `noise_std`. The best single predictor of all tasks is
    `-1.623 cos x`, with a mean squared error of 3.006; predicting zero has 4.252.

    Args:
      num_shots: The number of support points of a task; 10 in the paper's training.
      num_queries: The number of query points of a task.
      with_parameters: Append `A` and `p` to every input, for an oracle that knows its task.
      noise_std: The standard deviation of the targets' noise; 0 in the paper. With noise, tasks of few points are
        ambiguous.

    Returns:
      `sample(key) -> Task` of `Batch(inputs [n, 1], targets [n, 1])`, inputs `[n, 3]` with parameters;
      pure, for use inside `jit` and `vmap`.

    Raises:
      ValueError: If `num_shots` or `num_queries` < 1, or `noise_std` < 0.

    Example:
      >>> import jax, jaxmaml
      >>> sample = jaxmaml.tasks.sinusoid(num_shots=5)
      >>> tasks = jax.vmap(sample)(jax.random.split(jax.random.key(0), 25))
      >>> tasks.support.inputs.shape
      (25, 5, 1)

    References:
      Finn et al., 2017, section 5.1, https://arxiv.org/abs/1703.03400
      Finn et al., 2018, https://arxiv.org/abs/1806.02817 (ambiguous tasks, noise of 0.3)
    """
    checks.positive_int("num_shots", num_shots)
    checks.positive_int("num_queries", num_queries)
    checks.number("noise_std", noise_std, at_least=0.0)

    def sample(key: chex.PRNGKey) -> Task:
        amplitude_key, phase_key, input_key = jax.random.split(key, 3)
        amplitude = jax.random.uniform(amplitude_key, minval=AMPLITUDE[0], maxval=AMPLITUDE[1])
        phase = jax.random.uniform(phase_key, minval=PHASE[0], maxval=PHASE[1])
        x = jax.random.uniform(input_key, (num_shots + num_queries, 1), minval=INPUT[0], maxval=INPUT[1])
        targets = amplitude * jnp.sin(x - phase)
        if noise_std:
            # 3 and not 0: `split` makes the keys above by folding in 0, 1 and 2.
            targets += noise_std * jax.random.normal(jax.random.fold_in(key, 3), x.shape)
        inputs = x
        if with_parameters:
            told = jnp.broadcast_to(jnp.stack([amplitude, phase]), (x.shape[0], 2))
            inputs = jnp.concatenate([x, told], axis=1)
        return Task(
            support=Batch(inputs[:num_shots], targets[:num_shots]),
            query=Batch(inputs[num_shots:], targets[num_shots:]),
        )

    return sample
