"""Products are put into the form that is fast, and stay what they are."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from jaxmaml.execution.rewriting.cpu_implementations import with_cpu_implementations
from jaxmaml.jax_internals import jaxprs_in_params


def num_kernel_gradients(jaxpr):
    """The number of matmuls that contract the rows of both operands."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (x_rows, y_rows), (batch, _) = eqn.params["dimension_numbers"]
            total += x_rows == y_rows == (len(batch),)
        total += sum(num_kernel_gradients(inside) for inside in jaxprs_in_params(eqn.params))
    return total


def kernel_gradient(x, y):
    return jnp.einsum("ri,ro->io", x, y)


def in_a_loop(x, y):
    """In a scan, in a branch, batched."""

    def step(total, y):
        product = jax.lax.cond(y[0, 0] > 0, kernel_gradient, lambda x, y: 2 * kernel_gradient(x, y), x, y)
        return total + product, jax.vmap(kernel_gradient)(jnp.stack([x, 2 * x]), jnp.stack([y, y + 1]))

    return jax.lax.scan(step, jnp.zeros((x.shape[1], y.shape[1])), jnp.stack([y, -y]))


@pytest.mark.parametrize("function", [kernel_gradient, in_a_loop])
@pytest.mark.parametrize(("columns", "other_columns"), [(24, 8), (8, 24), (16, 16)])
def test_reordered_matmuls_are_the_same(function, columns, other_columns):
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(16, n)), jnp.float32) for n in (columns, other_columns))
    ours = with_cpu_implementations(function, one_thread=False)
    assert num_kernel_gradients(jax.make_jaxpr(function)(x, y).jaxpr) > 0
    assert num_kernel_gradients(jax.make_jaxpr(ours)(x, y).jaxpr) == 0
    for a, b in zip(*(jax.tree.leaves(jax.jit(f)(x, y)) for f in (ours, function)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "one_thread", "is_reordered"),
    [
        (32, (8, 8), False, True),  # few rows
        (64, (8, 8), False, False),  # what a thread for each core is fast at
        (64, (8, 8), True, True),
        (2048, (64, 64), True, False),  # an operand that leaves the cache
        (2048, (256, 64), True, True),  # but for a quarter of the other one
        (64, (32, 8), False, False),
        (64, (32, 8), True, True),
        (64, (8, 32), True, True),
        (64, (4096, 128), True, False),  # a result that leaves the cache
        (4, (8, 8), False, False),  # too small to gain
    ],
)
def test_which_matmuls_gain(rows, columns, one_thread, is_reordered):
    shapes = [jax.ShapeDtypeStruct((rows, n), jnp.float32) for n in columns]
    program = jax.make_jaxpr(with_cpu_implementations(kernel_gradient, one_thread))(*shapes)
    assert (num_kernel_gradients(program.jaxpr) == 0) == is_reordered


def test_an_outer_step_has_them_reordered():
    tasks = jaxmaml.Task(*jnp.ones((2, 3, 8, 16)))
    learner = jaxmaml.maml(
        lambda w, batch: jnp.mean((batch @ w) ** 2), optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=2
    )
    state = learner.init(jnp.ones((16, 8)))
    assert num_kernel_gradients(jax.make_jaxpr(learner.update)(state, tasks).jaxpr) == 0


SMALL = """
import jax, jax.numpy as jnp, jaxmaml, optax
def loss_fn(params, batch):
    hidden = jnp.tanh(batch[0] @ params["w"])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["v"] + params["b"], batch[1]).mean()
params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 3)), "b": jnp.zeros(3)}
objective = jaxmaml.objectives.multi_step(lambda step: jnp.array([0.5, 0.0, 0.5]))
learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(1.0), num_inner_steps=3, objective=objective)
batch = jnp.ones((4, 3, 4)), jnp.tile(jnp.arange(3), (4, 1))
jax.jit(learner.update).lower(learner.init(params), jaxmaml.Task(batch, batch)).compile()
"""


@pytest.mark.slow
def test_small_matmuls_compile_in_branches():
    """As users compile. XLA ends the process where it does not like a matmul."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, "-c", SMALL], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:300]
