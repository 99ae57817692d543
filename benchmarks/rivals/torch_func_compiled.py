"""torch.func as in `torch_func`, the whole meta-step under `torch.compile`."""

import contextlib
import functools

from benchmarks.rivals import torch_func

make_step = functools.partial(torch_func.make_step, compiled=True)
make_training = functools.partial(torch_func.make_training, compiled=True)
as_numpy = torch_func.as_numpy
memory_peak = torch_func.memory_peak
full_precision = contextlib.nullcontext  # Another precision is another compilation.
