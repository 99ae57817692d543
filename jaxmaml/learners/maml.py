"""Model-agnostic meta-learning."""

from typing import Unpack

import optax

from jaxmaml.core.learner import make_learner
from jaxmaml.options import Axes
from jaxmaml.types import InnerRule, LossFn, MetaLearner


def maml(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation | InnerRule,
    outer_optimizer: optax.GradientTransformation,
    *,
    num_inner_steps: int,
    **axes: Unpack[Axes],
) -> MetaLearner:
    r"""Learn an initialisation from which a few gradient steps learn a new task.

    With `theta` the initialisation (`state.params`) and `alpha` the step size of `inner_optimizer`,
    each task `i` adapts on its support set for `K = num_inner_steps` steps,

        theta_i^0 = theta,   theta_i^{k+1} = theta_i^k - alpha grad L(theta_i^k, support_i),

    (or the update that `inner_optimizer` makes of that gradient), and `outer_optimizer` minimises

        1/n sum_i L(theta_i^K, query_i)

    with respect to `theta`, through the inner steps, second derivatives included.

    Args:
      loss_fn: `(params, batch) -> loss` or `(loss, aux)` for any pytrees `params` and `batch`. The loss is
        a floating-point scalar. A mean over examples is usual: the original code sums over the ways of a
        classification task, so its step sizes are smaller by their number. `params` are floating-point.
      inner_optimizer: Any optax transformation, with a fresh state for each task, or an `InnerRule`.
      outer_optimizer: Any optax transformation; the paper uses `optax.adam(1e-3)`.
      num_inner_steps: `K` >= 1, the number of inner steps in training, and by default in `adapt`.
      derivative: How the inner loop is differentiated. `"mixed"` (exact; forward over reverse, least
        memory) is the default; `"reverse"` (exact; plain JAX, and the one that forward-mode
        differentiation of `adapt` needs); `"first_order"` (inner gradients taken as constants: no second
        derivatives, about a third cheaper in the paper).
      **axes: The other choices of the family, such as which leaves are adapted or the outer objective, and options of
        execution that do not change the result: see `jaxmaml.Axes` and `jaxmaml.Execution`. The defaults are MAML's.

    Returns:
      `MetaLearner(init, adapt, update)`, pure functions:
      `init(params) -> MetaState`;
      `update(state, tasks) -> (MetaState, MetaInfo)`, with `tasks` a `Task` whose leaves are
      `[num_tasks, ...]`;
      `adapt(state, support) -> (fast_params, AdaptTrace)`, with the support loss at every step.

    Raises:
      TypeError: If an argument is of the wrong kind; in use: if `params` has a leaf that is not floating
        point, or `tasks` is not a `Task`.
      ValueError: If `num_inner_steps` or a chunk's size < 1, if `derivative` or another choice is unknown, or if
        `inner_optimizer` has a NaN derivative at a zero gradient (Adam with `eps_root=0`); in use: if the
        loss is not a scalar, if a batch is empty, or if leading axes differ.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> def loss_fn(params, batch):
      ...     x, y = batch
      ...     return jnp.mean((x @ params["w"] - y) ** 2)
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.adam(1e-2), num_inner_steps=3)
      >>> state = learner.init({"w": jnp.zeros((2, 1))})
      >>> x = jax.random.normal(jax.random.key(0), (8, 5, 2))                 # 8 tasks, 5 examples
      >>> y = x @ jnp.ones((8, 2, 1))
      >>> tasks = jaxmaml.Task(support=(x, y), query=(x, y))
      >>> update = jax.jit(learner.update)
      >>> losses = []
      >>> for _ in range(50):
      ...     state, info = update(state, tasks)
      ...     losses.append(float(info.query_loss.mean()))
      >>> losses[-1] < 0.5 * losses[0]
      True
      >>> fast_params, trace = learner.adapt(state, (x[0], y[0]), num_inner_steps=5)
      >>> trace.support_loss.shape
      (5,)

    References:
      Finn, Abbeel and Levine, 2017, https://arxiv.org/abs/1703.03400
      Kemaev et al., 2025, https://arxiv.org/abs/2505.00793 (mixed-mode differentiation)
    """
    return make_learner(loss_fn, inner_optimizer, outer_optimizer, num_inner_steps, axes, "maml")
