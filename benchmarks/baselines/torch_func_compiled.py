"""torch.func as in `torch_func`, the whole meta-step under `torch.compile`, on a GPU with CUDA graphs."""

import functools

from benchmarks.baselines import harness, torch_func

BASELINE = harness.Baseline(
    functools.partial(torch_func.meta_gradient, compiled=True), channels_last=False, exact=torch_func.BASELINE
)
