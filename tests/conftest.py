"""Strict JAX settings, and where real data is found."""

import os
import pathlib

import chex
import jax
import pytest

# Silent broadcasting is an error. Strict dtype promotion would be too, but optax's Adam does not pass it.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Two devices, for the tests of task axes that are split; all else runs on the first.
jax.config.update("jax_num_cpu_devices", 2)

REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _fresh_trace_counts():
    chex.clear_trace_counter()


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """A compiled program holds memory maps, of which Linux gives a process 65,530; beyond, XLA's compiler crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Run a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def omniglot_dir() -> pathlib.Path:
    """Folder with the real Omniglot zips."""
    return data_dir("omniglot")


def data_dir(name: str) -> pathlib.Path:
    """Folder of a real data set; `JAXMAML_DATA_DIR` names its parent."""
    root = pathlib.Path(os.environ.get("JAXMAML_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    path = root / name
    if not path.is_dir():
        reason = f"real {name} is needed and {path} does not exist; set JAXMAML_DATA_DIR"
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (data must be there in CI)")
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def omniglot_cache(tmp_path_factory) -> pathlib.Path:
    """Where decoded drawings are kept, for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "omniglot-cache"


@pytest.fixture(scope="session")
def omniglot_splits(omniglot_dir, omniglot_cache):
    import jaxmaml

    return jaxmaml.tasks.omniglot.load(omniglot_dir, cache_dir=omniglot_cache)
