"""The precision benchmark: what it rounds, and what it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import precision


def test_operands_are_rounded_in_loops_too():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(6, 6)).astype(np.float32), rng.normal(size=(6, 6)).astype(np.float32)

    def by_hand(x):
        for _ in range(3):
            x = x.astype(jnp.bfloat16).astype(np.float32) @ kernel.astype(jnp.bfloat16).astype(np.float32)
        return x

    def looped(x):
        return lax.scan(lambda x, _: (x @ kernel, None), x, length=3)[0]

    rounded = jax.jit(precision.with_rounded_operands(looped, bits=7))(x)
    np.testing.assert_allclose(rounded, by_hand(x), rtol=1e-5, atol=1e-5)
    assert np.abs(rounded - looped(x)).max() > 1e-3


@pytest.mark.slow
def test_fewer_bits_are_further_off(quick_compiles):
    config = precision.Config(sinusoid_steps=2, num_tasks=3)
    rows, histories = precision.measure(config, "sinusoid", precision.sinusoid(config), mesh=None)
    errors = [rows[name]["gradient_error_start"] for name in precision.FORMATS]
    assert errors[0] < 1e-5 < errors[1] < 1e-3 < errors[2] < 1e-1
    assert all(np.isfinite(losses).all() and len(losses) == 2 for losses in histories.values())
    assert precision.markdown({"sinusoid": rows}).count("\n") == 1 + len(rows)
