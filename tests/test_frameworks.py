"""The same `maml` on raw pytrees, flax linen, flax nnx and equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxmaml
from tests import problems

pytestmark = pytest.mark.usefixtures("quick_compiles")


def raw():
    return problems.mlp_params(), problems.mlp


def flax_linen():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(4, (3,), conv_general_dilated=jaxmaml.nn.conv_general_dilated)(x[:, None])[:, 0]
            x = linen.BatchNorm(use_running_average=False)(jnp.tanh(x))
            return linen.Dense(1)(x)

    net = Net()
    params = net.init(jax.random.key(0), jnp.ones((2, 1)))["params"]
    # Batch statistics: what the layer would store is computed and dropped.
    return params, lambda params, x: net.apply({"params": params}, x, mutable=["batch_stats"])[0]


def flax_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(1, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.last = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(jnp.tanh(self.norm(self.first(x))))

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    # copy=True: the layer's own statistics must not be written to from inside a transformation.
    return params, lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)


def equinox():
    net = eqx.nn.MLP(1, 1, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("framework", [raw, flax_linen, flax_nnx, equinox])
def test_the_same_maml(framework):
    params, apply = framework()
    with jax.numpy_rank_promotion("allow"):  # The frameworks' own layers broadcast.
        loss_fn = jaxmaml.mean_squared_error(apply)
        tasks = problems.mlp_tasks(4)
        gradients = [
            problems.meta_gradient(problems.maml(loss_fn, derivative=derivative), params, tasks)
            for derivative in ("mixed", "reverse")
        ]
        np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-5)
        learner = jaxmaml.maml(loss_fn, optax.sgd(0.05), optax.adam(1e-2), num_inner_steps=2)
        state = learner.init(params)
        assert jax.tree.structure(state.params) == jax.tree.structure(params)
        update = jax.jit(learner.update)
        losses = []
        for _ in range(30):
            state, info = update(state, tasks)
            losses.append(float(info.query_loss.mean()))
        assert losses[-1] < losses[0]
        fast_params, _ = learner.adapt(state, jax.tree.map(lambda leaf: leaf[0], tasks.support))
        assert apply(fast_params, tasks.query[0][0]).shape == (6, 1)
