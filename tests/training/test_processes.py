"""Two processes train together, each on its own share of the tasks."""

import json
import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmaml
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PROCESS = """
import json, sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
import jaxmaml
from tests.training.test_processes import fitted
print("RESULT", json.dumps(fitted(jaxmaml.task_mesh(), slice(2 * int(sys.argv[1]), 2 * int(sys.argv[1]) + 2))))
"""


def fitted(mesh, share):
    """The parameters and losses of four outer steps on batches of four tasks, of which this process opens its share."""

    def batches(first_step):
        for step in range(first_step, 4):
            support, query = np.random.default_rng(step).normal(size=(2, 4, 5, 3)).astype(np.float32)
            yield jaxmaml.Task(support[share], query[share])

    learner = jaxmaml.maml(
        lambda w, batch: jnp.mean((batch @ w) ** 2), optax.sgd(0.1), optax.sgd(0.5), num_inner_steps=2, mesh=mesh
    )
    state, history = jaxmaml.fit(
        learner,
        learner.init(jnp.ones(3)),
        jaxmaml.tasks.Batches(batches),
        num_steps=4,
        steps_per_dispatch=2,
        progress=False,
    )
    return np.asarray(state.params).tolist(), np.asarray(history.query_loss).tolist()


def test_each_process_feeds_its_own_share():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    expected = fitted(None, slice(None))
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-1000:]
        (line,) = (line for line in out.splitlines() if line.startswith("RESULT"))
        for ours, theirs in zip(json.loads(line.removeprefix("RESULT")), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)
