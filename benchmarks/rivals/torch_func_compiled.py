"""torch.func as in `torch_func`, the whole meta-step under `torch.compile`."""

import contextlib
import functools

from benchmarks.rivals import harness, torch_func

RIVAL = harness.Rival(
    functools.partial(torch_func.meta_gradient, compiled=True),
    channels_last=False,
    full_precision=contextlib.nullcontext,  # Another precision is another compilation.
)
