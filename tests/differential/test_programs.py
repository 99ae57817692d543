"""Programs made at random, compiled as users compile, give what textbook references give without `jit`."""

import ast
import inspect
import json

import pytest

from benchmarks import differential
from tests.differential import references, terms

# Batches of programs, each of one seed; those of odd seeds have a mesh.
SEEDS = range(4)
PROGRAMS = 10


def found_by_seed(monkeypatch, seed, num_programs):
    """What was found, in a process that has the flags of users."""
    monkeypatch.setenv("XLA_FLAGS", "")
    return differential.batch(seed, num_programs, patience=1200.0)


def assert_no_faults(found):
    faults = [each for each in found if each["kind"] in differential.FAULTS]
    assert not faults, json.dumps(faults, indent=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_programs(monkeypatch, seed):
    found = found_by_seed(monkeypatch, seed, PROGRAMS)
    assert_no_faults(found)
    kinds = [each["kind"] for each in found]
    assert len(kinds) == PROGRAMS
    assert kinds.count("equal") >= PROGRAMS - 2


@pytest.mark.slow  # So that `-m "not slow"` leaves it out too.
@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1000, 1010))
def test_more_programs(monkeypatch, seed):
    assert_no_faults(found_by_seed(monkeypatch, seed, 20))


def test_references_are_textbook():
    """Plain JAX, and each function short enough to be read beside the paper."""
    tree = ast.parse(inspect.getsource(references))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imported} == {"jax", "optax"}
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert max(lengths.values()) <= 25, lengths


@pytest.mark.slow
def test_every_term_is_a_loss():
    """Finite, and with a gradient in the leaves that it names alone."""
    import jax
    import numpy as np

    with jax.enable_x64(True):
        batch, _ = terms.tasks_of(1, 6, 0)[0]
        for name, (term, needs) in terms.TERMS.items():
            params = terms.params_of([name], 0)
            value, gradient = jax.value_and_grad(term)(params, batch)
            assert np.isfinite(value), name
            if name != "noise_free_constant":
                assert any(np.abs(gradient[leaf]).max() > 0 for leaf in needs), (name, gradient)
            assert not gradient["unused"].any()
