"""Examples in docstrings are compiled with few optimizations: they are there to be read, and to run."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _quick_examples(request):
    if isinstance(request.node, pytest.DoctestItem):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    else:
        yield
