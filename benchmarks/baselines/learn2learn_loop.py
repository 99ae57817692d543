"""learn2learn: clone the module, adapt the clone, for each task."""

import warnings

import torch

from benchmarks.baselines import harness

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # learn2learn imports torchvision, which when built for another torch lacks two operators; nothing here calls them.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    OPERATORS.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    OPERATORS.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies' age
    import learn2learn


def meta_gradient(
    model: str, params: harness.Tensors, *, num_inner_steps: int, step_size: float
) -> harness.MetaGradient:
    """Build `tasks -> (loss, gradients)`."""
    maml = learn2learn.algorithms.MAML(harness.Net(model, params), lr=step_size)

    def query_loss(x_support, y_support, x_query, y_query):
        learner = maml.clone()
        for _ in range(num_inner_steps):
            learner.adapt(learner(x_support, y_support))
        return learner(x_query, y_query)

    return harness.over_tasks(params, query_loss)


BASELINE = harness.Baseline(meta_gradient)
