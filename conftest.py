"""Quick compiles, for tests and for examples in docstrings."""

import jax
import pytest


@pytest.fixture
def quick_compiles():
    """Compile with few optimizations, where compiling takes the time and neither speed nor fusion is the point."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _quick_examples(request):
    """Examples are there to be read, and to run."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("quick_compiles")
