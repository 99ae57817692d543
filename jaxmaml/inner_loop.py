"""The inner loop: adapting to one task by gradient descent on its support loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from jaxmaml import checks
from jaxmaml.derivatives import inner_gradient
from jaxmaml.remat import KEPT, remat_scan
from jaxmaml.types import AdaptTrace, InnerRule, LossFn, PyTree

#: `(params, rule_params, support, num_inner_steps, observe) -> (fast_params, AdaptTrace)`.
InnerLoop = Callable[..., tuple[PyTree, AdaptTrace]]


def make_inner_loop(loss_fn: LossFn, rule: InnerRule, derivative: str, remat: str) -> InnerLoop:
    r"""Build the inner loop `theta_{k+1} = theta_k + rule(grad L_support(theta_k))`.

    It is a scan over steps, so that its compile time does not depend on their number and its memory,
    differentiated in mixed mode, holds little more than one copy of the parameters a step; or less, as `remat` says.
    """
    gradient = inner_gradient(loss_fn, derivative)

    def inner_loop(params, rule_params, support, num_inner_steps, observe=None):
        def watch(fast_params: PyTree) -> Any:
            return checks.arrays("`observe(fast_params)`", observe(fast_params) if observe else ())

        def step(carry, index):
            fast_params, rule_state = carry
            loss, aux, grads = gradient(fast_params, support)
            grads = checkpoint_name(grads, KEPT)
            updates, rule_state = rule.update(
                grads,
                rule_state,
                fast_params,
                rule_params,
                index,
                value=loss,
                grad=grads,
                value_fn=lambda p: loss_fn(p, support)[0],
            )
            return (optax.apply_updates(fast_params, updates), rule_state), (loss, aux, watch(fast_params))

        start = (params, rule.init(rule_params, params))
        (fast_params, _), (losses, aux, seen) = remat_scan(step, start, num_inner_steps, remat)
        seen = jax.tree.map(lambda s, last: jnp.concatenate([s, last[None]]), seen, watch(fast_params))
        return fast_params, AdaptTrace(support_loss=losses, aux=aux, observed=seen)

    return inner_loop
