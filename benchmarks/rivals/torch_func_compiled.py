"""torch.func as in `torch_func`, the whole meta-step under `torch.compile`, on a GPU with CUDA graphs."""

import functools

from benchmarks.rivals import harness, torch_func

RIVAL = harness.Rival(
    functools.partial(torch_func.meta_gradient, compiled=True), channels_last=False, exact=torch_func.RIVAL
)
