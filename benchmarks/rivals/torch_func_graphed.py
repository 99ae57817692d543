"""torch.func as in `torch_func`, the whole step captured as one CUDA graph."""

from benchmarks.rivals import harness, torch_func

RIVAL = harness.Rival(torch_func.meta_gradient, channels_last=False, as_graph=True, exact=torch_func.RIVAL)
