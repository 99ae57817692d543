"""Which leaves are meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml import parameter_selection

PARAMS = {"body": [{"w": jnp.ones(2)}, {"w": jnp.zeros(3)}], "head": {"w": jnp.ones(1), "b": None}}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (None, [True, True, True]),
        ("head", [False, False, True]),
        ("w", [True, True, True]),
        ("1", [False, True, False]),
        (lambda path: path == "body/0/w", [True, False, False]),
        ({"body": [True, False], "head": False}, [True, False, False]),
        (parameter_selection.Except("head", "head"), [True, True, False]),
    ],
)
def test_selection(which, expected):
    mask = parameter_selection.select(PARAMS, which, "adapted")
    assert jax.tree.leaves(mask) == expected
    chosen, rest = parameter_selection.split(PARAMS, mask)
    assert len(jax.tree.leaves(chosen)) == sum(expected)
    merged = parameter_selection.merge(chosen, rest)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(PARAMS), strict=True))


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        ("tail", ValueError, "`adapted` selects no leaf, got 'tail'; the leaves are body/0/w, body/1/w, head/w"),
        (lambda path: False, ValueError, "selects no leaf"),
        (lambda path: 1, TypeError, "`adapted` must say true or false of each leaf, got 1"),
        ({"body": True}, ValueError, "`adapted` must be a mask that fits"),
        (("head", "tail2", 3), ValueError, "`adapted` must be a mask that fits the parameters, a name, some names or"),
        (lambda path: None, TypeError, "`adapted` must say true or false of each leaf, got None"),
        (parameter_selection.Named("tail", "head"), ValueError, "`head` selects no leaf"),
        (parameter_selection.Except("w", "warp"), ValueError, "`warp` selects every leaf and leaves nothing to adapt"),
        (parameter_selection.Except("tail", "warp"), ValueError, "`warp` selects no leaf"),
    ],
)
def test_nothing_selected_is_an_error(which, error, message):
    with pytest.raises(error, match=message):
        parameter_selection.select(PARAMS, which, "adapted")


def test_values_of_steps():
    mask = parameter_selection.select(PARAMS, "head", "per_step")
    stacked = parameter_selection.with_steps(PARAMS, mask, 3)
    assert stacked["head"]["w"].shape == (3, 1)
    stacked["head"]["w"] = jnp.arange(3.0)[:, None]
    for step, expected in ((-1, 0.0), (0, 0.0), (2, 2.0), (7, 2.0)):
        np.testing.assert_array_equal(parameter_selection.at_step(stacked, mask, step)["head"]["w"], [expected])
