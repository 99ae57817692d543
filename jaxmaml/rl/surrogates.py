r"""Surrogate losses of the policy gradient, and what the meta-gradient gets from each.

Meta-learning differentiates the inner policy gradient once more. With `R_t` the return to go and `tau ~ pi` the
trajectories, the Hessian of the expected return is the expectation `H1 + H2 + H12 + H12^T` of

    H1  = sum_t grad log pi_t grad log pi_t^T R_t
    H2  = sum_t grad^2 log pi_t R_t
    H12 = sum_t grad log pi_t (sum_{u > t} grad log pi_u R_u)^T

(Rothfuss et al., 2019). All four surrogates have the same value of the first derivative at the policy that recorded the
trajectories, and differ in the second:

| loss | Hessian at the recording policy | |
| --- | --- | --- |
| `reinforce` | H2 | a wrong meta-gradient, which many implementations use |
| `lvc` | H1 + H2 | biased, of low variance; what to start with |
| `dice` | H1 + H2 + H12 + H12^T | exact in expectation, of higher variance |
| `clipped` | that of `lvc`, or zero where it clips | for the outer loss only |

Losses are negative and *per step of the horizon*, as in the original code of MAML: a step size here is `horizon` times
as large as one for the mean of whole returns. A loss is `(params, trajectories) -> (loss, {"return": ..., "kl": ...})`:
the mean sum of rewards without discount, and the mean over the recorded steps of the divergence of the recording policy
from the current one, in nats. At another policy than the recording one, `lvc`, `dice` and `clipped` weigh the recorded
trajectories by likelihood ratios, which a second outer step on the same trajectories and a line search need; the value
of `reinforce` means nothing there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.rl.policies import Policy
from jaxmaml.rl.returns import advantages as make_advantages
from jaxmaml.rl.rollouts import Trajectories, mean_return, step_weights
from jaxmaml.types import PyTree

#: `(params, trajectories) -> (loss, {"return": mean sum of rewards, "kl": divergence in nats})`.
Surrogate = Callable[[PyTree, Trajectories], tuple[jax.Array, dict[str, jax.Array]]]
#: `trajectories -> [num_trajectories, horizon]`.
Advantages = Callable[[Trajectories], jax.Array]


def reinforce(policy: Policy, advantages: Advantages | None = None) -> Surrogate:
    """Build the usual surrogate, `-log pi_t A_t`: the right gradient, and of its derivatives H2 only.

    Args:
      policy: Whose parameters are learned.
      advantages: `trajectories -> [num_trajectories, horizon]`; `jaxmaml.rl.advantages()` by default.
    Returns:
      `(params, trajectories) -> (loss, {"return": ..., "kl": ...})`; see the module.
    References:
      Williams, 1992, https://doi.org/10.1007/BF00992696; the surrogate of Finn et al., 2017,
      https://arxiv.org/abs/1703.03400
    """
    return _surrogate(policy, advantages, lambda log_ratio, log_prob, advantage: log_prob * advantage)


def lvc(policy: Policy, advantages: Advantages | None = None) -> Surrogate:
    """Build the low-variance curvature surrogate, `-(pi_t / recorded pi_t) A_t`: it keeps H1 + H2.

    What is lost, H12 + H12^T, is how a change of one action's probability changes the gradient of later ones.

    Args:
      policy: Whose parameters are learned.
      advantages: `trajectories -> [num_trajectories, horizon]`; `jaxmaml.rl.advantages()` by default.
    Returns:
      `(params, trajectories) -> (loss, {"return": ..., "kl": ...})`; see the module.
    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> policy = jaxmaml.rl.gaussian(lambda w, x: x @ w)
      >>> environment = jaxmaml.tasks.navigation.environment()
      >>> act = jaxmaml.rl.rollout(environment, policy, num_trajectories=4, horizon=10)
      >>> params = {"mean": jnp.zeros((2, 2)), "log_std": jnp.zeros(2)}
      >>> batch = act(params, jnp.array([0.3, 0.1]), jax.random.key(0))
      >>> loss, aux = jaxmaml.rl.lvc(policy)(params, batch)
      >>> float(aux["kl"]), bool(aux["return"] < 0)
      (0.0, True)

    References:
      Rothfuss et al., 2019, https://arxiv.org/abs/1810.06784
    """
    return _surrogate(policy, advantages, lambda log_ratio, log_prob, advantage: jnp.exp(log_ratio) * advantage)


def dice(policy: Policy, advantages: Advantages | None = None, *, discount: float = 1.0) -> Surrogate:
    r"""Build the DiCE surrogate, whose derivatives of every order are right in expectation: it keeps all terms.

    With the magic box `M_t = prod_{u <= t} pi_u / recorded pi_u`, which is 1 at the recording policy,

        loss = -1/horizon sum_t discount^t (M_t - M_{t-1}) A_t.

    With `A_t = R_t` the sum telescopes to Foerster's `sum_t discount^t M_t r_t` less the mean return. A baseline that
    depends on no action of its own step or later ones leaves all derivatives unbiased (Farquhar et al., 2019).

    Args:
      policy: Whose parameters are learned.
      advantages: `trajectories -> [num_trajectories, horizon]`; `jaxmaml.rl.advantages()` by default. For exactness:
        `gae_lambda=1`, the same `discount` as here, and `standardize=False`.
      discount: That of the advantages gives the derivatives of the discounted return. With 1, the default, later
        steps count as much as earlier ones, as in most implementations of policy gradients and in the other surrogates.
    Returns:
      `(params, trajectories) -> (loss, {"return": ..., "kl": ...})`; see the module.
    Raises:
      ValueError: If `discount` is not > 0.
    References:
      Foerster et al., 2018, https://arxiv.org/abs/1802.05098; Farquhar et al., 2019,
      https://arxiv.org/abs/1909.10549
    """
    checks.positive("discount", discount)

    def terms(log_ratio, log_prob, advantage):
        until = jnp.cumsum(log_ratio, axis=-1)
        time = jnp.arange(advantage.shape[-1], dtype=advantage.dtype)[None]
        # M_t - M_{t-1} = M_t (1 - pi_recorded / pi); `expm1` is exact near 0.
        return discount**time * jnp.exp(until - log_ratio) * jnp.expm1(log_ratio) * advantage

    return _surrogate(policy, advantages, terms)


def clipped(policy: Policy, advantages: Advantages | None = None, *, clip: float = 0.3) -> Surrogate:
    """Build ProMP's outer loss, `-min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)` with `r_t = pi_t / recorded pi_t`.

    Several outer steps on the same trajectories stop by themselves where the policy has moved far enough.

    Args:
      policy: Whose parameters are learned.
      advantages: `trajectories -> [num_trajectories, horizon]`; `jaxmaml.rl.advantages()` by default.
      clip: > 0; 0.3 in the paper.
    Returns:
      `(params, trajectories) -> (loss, {"return": ..., "kl": ...})`; see the module.
    Raises:
      ValueError: If `clip` is not > 0.
    References:
      Schulman et al., 2017, https://arxiv.org/abs/1707.06347; Rothfuss et al., 2019, https://arxiv.org/abs/1810.06784
    """
    checks.positive("clip", clip)

    def terms(log_ratio, log_prob, advantage):
        ratio = jnp.exp(log_ratio)
        return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)

    return _surrogate(policy, advantages, terms)


def _surrogate(policy: Policy, advantages: Advantages | None, terms: Callable[..., jax.Array]) -> Surrogate:
    """The loss `-1/horizon sum_t terms(log ratio, log probability, advantage)`, averaged over trajectories."""
    if not isinstance(policy, Policy):
        raise TypeError(f"`policy` must be a jaxmaml.rl.Policy, got {type(policy).__name__}.")
    advantages = make_advantages() if advantages is None else advantages
    checks.function("advantages", advantages)

    def loss_fn(params: PyTree, trajectories: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        if not isinstance(trajectories, Trajectories):
            raise TypeError(f"The batch must be jaxmaml.rl.Trajectories, got {type(trajectories).__name__}.")
        # What was recorded is no function of the parameters, even where the inner loop made it.
        trajectories = jax.lax.stop_gradient(trajectories)
        advantage = advantages(trajectories)
        checks.same_shape("advantages(trajectories)", advantage, trajectories.rewards)
        weights = step_weights(trajectories)
        distribution = policy.distribution(params, trajectories.observations)
        log_prob = policy.log_prob(distribution, trajectories.actions)
        checks.same_shape("log_probs", trajectories.log_probs, log_prob)
        log_ratio = (log_prob - trajectories.log_probs) * trajectories.mask
        horizon = trajectories.rewards.shape[1]
        loss = -jnp.sum(weights * terms(log_ratio, log_prob, advantage)) / horizon
        apart = jnp.sum(weights * policy.kl(trajectories.distribution, distribution)) / jnp.sum(weights)
        return loss, {"return": mean_return(trajectories), "kl": apart}

    return loss_fn
