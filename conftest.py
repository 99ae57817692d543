"""Quick compiles, for tests and for examples in docstrings."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile

# What one test, worker or process of a test has compiled, the others load. JAX reads this when it is imported, and the
# workers inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxmaml-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# XLA's former emitters for CPUs make programs in half the time, which run up to half as long again: right for tests,
# wrong for users. Nor is a program worth splitting where every core has its own to compile. An XLA that does not know a
# flag ends the process.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], capture_output=True).returncode:
        os.environ["XLA_FLAGS"] = ""

import jax
import pytest

# Tracing makes millions of small objects, few of them in cycles: collecting as often as Python would takes a tenth of
# the tests' time.
gc.set_threshold(200_000, 50, 100)


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
