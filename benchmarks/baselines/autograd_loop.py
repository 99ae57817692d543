"""What learn2learn's MAML does without cloning a module: torch's gradients with their graph, task by task."""

import torch

from benchmarks.baselines import harness, torch_models


def meta_gradient(
    model: str, params: harness.Tensors, *, num_inner_steps: int, step_size: float
) -> harness.MetaGradient:
    """Build `tasks -> (loss, gradients)`."""

    def query_loss(x_support, y_support, x_query, y_query):
        fast_params = params
        for _ in range(num_inner_steps):
            loss = torch_models.loss(model, fast_params, x_support, y_support)
            grads = torch.autograd.grad(loss, tuple(fast_params.values()), create_graph=True)
            updates = zip(fast_params.items(), grads, strict=True)
            fast_params = {name: value - step_size * grad for (name, value), grad in updates}
        return torch_models.loss(model, fast_params, x_query, y_query)

    return harness.over_tasks(params, query_loss)


BASELINE = harness.Baseline(meta_gradient)
