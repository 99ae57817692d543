"""higher: a differentiable copy of the module and of its optimizer for each task."""

import higher
import torch

from benchmarks.baselines import harness


def meta_gradient(
    model: str, params: harness.Tensors, *, num_inner_steps: int, step_size: float
) -> harness.MetaGradient:
    """Build `tasks -> (loss, gradients)`."""
    net = harness.Net(model, params)
    optimizer = torch.optim.SGD(net.parameters(), step_size)

    def query_loss(x_support, y_support, x_query, y_query):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False, track_higher_grads=True) as (fast, inner):
            for _ in range(num_inner_steps):
                inner.step(fast(x_support, y_support))
            return fast(x_query, y_query)

    return harness.over_tasks(params, query_loss)


BASELINE = harness.Baseline(meta_gradient)
