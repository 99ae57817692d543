"""The shape of the code: who may touch what."""

import re

import pytest

from tests.conftest import REPOSITORY

INTERNALS = re.compile(
    r"jax\.(core|extend|interpreters|_src|config)\b|from jax import (core|extend|config)|primitive\.name"
)


@pytest.mark.parametrize("package", ["jaxmaml", "benchmarks"])
def test_one_module_touches_jaxs_internals(package):
    paths = [path for path in (REPOSITORY / package).rglob("*.py") if path.name != "jax_internals.py"]
    found = {str(path): INTERNALS.findall(path.read_text()) for path in paths if INTERNALS.search(path.read_text())}
    assert not found
