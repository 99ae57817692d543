"""torch.func as in `torch_func`, the whole step captured as one CUDA graph."""

from benchmarks.baselines import harness, torch_func

BASELINE = harness.Baseline(torch_func.meta_gradient, channels_last=False, as_graph=True, exact=torch_func.BASELINE)
