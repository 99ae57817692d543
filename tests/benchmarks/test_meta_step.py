"""The speed benchmark: what it counts, what it compares, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxmaml
from benchmarks import convolutions, meta_step
from benchmarks.common import reporting
from benchmarks.speed import cases, flops, tables, traffic
from benchmarks.speed.workers import Worker, prepare


def counted(function, *shapes):
    return flops.count(jax.make_jaxpr(function)(*(jnp.ones(shape) for shape in shapes)).jaxpr)


def test_operations_are_counted():
    assert counted(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert counted(jnp.matmul, (7, 3, 4), (7, 4, 5)) == 7 * 2 * 3 * 4 * 5

    def repeated(x):
        return lax.scan(lambda x, _: (x @ x, None), x, length=6)[0]

    assert counted(repeated, (4, 4)) == 6 * 2 * 4**3


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_derivatives_cost_the_same(stride):
    """All three matmuls pair every output with every input of its window; zeros between them do not count."""

    def convolve(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dims)

    shapes = ((2, 8, 8, 3), (3, 3, 3, 5))
    once = counted(convolve, *shapes)
    assert once == 2 * 2 * (8 // stride) ** 2 * 9 * 3 * 5

    def loss(x, kernel):
        return jnp.sum(convolve(x, kernel) ** 2)

    assert counted(jax.grad(loss, (0, 1)), *shapes) == 3 * once
    # The output, its VJP with respect to one of the two, the derivatives of that VJP, and the output again.
    for argument in (0, 1):
        curvature = jax.grad(lambda *xk: jnp.sum(jax.grad(loss, argument)(*xk) ** 2), (0, 1))  # noqa: B023
        assert counted(curvature, *shapes) == 6 * once


def test_gradients_that_differ_are_not_timed():
    same, other = {"grads": np.array([1.0, 2.0])}, {"grads": np.array([1.0, 2.1])}
    assert meta_step.compare({"a": same, "b": same}) == {"a": 0.0, "b": 0.0}
    with pytest.raises(ValueError, match="b computes another gradient"):
        meta_step.compare({"a": same, "b": other})


class FakeWorker:
    """Answers at once: its gradient is right, what it times is `rounding` away from it."""

    prepared = True

    def __init__(self, path, rounding):
        self.path, self.rounding = path, rounding
        np.savez(path, loss=0.0, grads=np.ones(3))

    def ask(self, word):
        return {"rounding": self.rounding} if word == "check" else [1e-3]

    def kill(self):
        pass


def test_what_is_timed_is_what_was_compared(tmp_path):
    config = meta_step.Config(("sinusoid-1step",), ("jaxmaml", "plain_jax"), rounds=1)
    workers = {name: FakeWorker(tmp_path / f"{name}.npz", 0.4) for name in config.implementations}
    measured = meta_step.measure("sinusoid-1step", workers, config)
    assert measured["rows"]["plain_jax"]["median_ms"] == 1.0
    workers["plain_jax"].rounding = float("nan")
    with pytest.raises(ValueError, match="plain_jax times another gradient"):
        meta_step.measure("sinusoid-1step", workers, config)


def test_a_table_has_what_jaxmaml_was_prepared_for():
    row = {"median_ms": 2.0, "memory_bytes": 1e6, "compile_seconds": 3.0}
    done = {"flops": 1e9, "rows": {"jaxmaml": row, "plain_jax": {**row, "median_ms": 2500.0}}}
    late = {"flops": 1e9, "rows": {"plain_jax": row}}
    table = tables.markdown(
        {
            "config": {"implementations": ["jaxmaml", "plain_jax"]},
            "product_flops_per_second": {"large": 2e12, "batched": 1e12},
            "cases": {"sinusoid-5steps": late, "transformer-5w5s-5steps": late, "omniglot-5w1s-1step": done},
        }
    )
    assert table.splitlines()[2:] == ["| omniglot-5w1s-1step | 2 | 50% | 1 | 3.0 | 1250x |"]


def test_a_table_of_several_runs_compares_within_each():
    def run(**milliseconds):
        rows = {n: {"median_ms": ms, "memory_bytes": 1e6, "compile_seconds": 3.0} for n, ms in milliseconds.items()}
        return {
            "config": {"implementations": list(rows)},
            "product_flops_per_second": {"batched": 1e12},
            "cases": {"omniglot-5w1s-1step": {"flops": 1e9, "rows": rows}},
        }

    runs = run(jaxmaml=2.0, plain_jax=8.0, torch_func=6.0), run(torch_func=90.0), run(torch_func=2.0, jaxmaml=1.0)
    assert tables.markdown(*runs).splitlines()[0].endswith("| plain_jax | torch_func |")
    assert tables.markdown(*runs).splitlines()[2:] == ["| omniglot-5w1s-1step | 1 | 100% | 1 | 3.0 | 4x | 2x |"]


@pytest.mark.slow
def test_implementations_are_measured_in_turn(tmp_path):
    implementations = ("jaxmaml", "plain_jax", "no_such")
    config = meta_step.Config(("sinusoid-1step",), implementations, rounds=2, seconds=0.05, processes=2)
    workers = prepare(config.cases, config.implementations, tmp_path, config.processes, patience=600)
    measured = meta_step.measure("sinusoid-1step", workers["sinusoid-1step"], config)
    assert set(measured["rows"]) == {"jaxmaml", "plain_jax"}
    assert "no_such" in measured["left_out"]["no_such"]
    for row in measured["rows"].values():
        assert row["median_ms"] > 0
        assert row["memory_bytes"] > 0
        assert row["deviation"] < 1e-4


def test_another_checkout_is_run_from_its_own_folder(tmp_path):
    """This one has no jaxmaml, and its `benchmarks.worker` answers with where it stands."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "worker.py").write_text(
        "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:3]]))"
    )
    worker = Worker("sinusoid-1step", "jaxmaml_before", tmp_path / "result.npz", before=tmp_path)
    assert json.loads(worker.stdout.readline()) == [str(tmp_path), "sinusoid-1step", "jaxmaml"]
    worker.kill()
    assert tables.fastest({"jaxmaml": {"median_ms": 2.0}, "jaxmaml_before": {"median_ms": 1.0}}) == "jaxmaml"
    with pytest.raises(SystemExit, match="--before"):
        meta_step.main(meta_step.Config(implementations=("jaxmaml_before",)))


def test_who_is_late_is_left_out(tmp_path):
    worker = prepare(("sinusoid-1step",), ("jaxmaml",), tmp_path, 1, patience=0.1)["sinusoid-1step"]["jaxmaml"]
    assert not worker.prepared
    assert worker.last_words() == "not prepared in time"


def test_bytes_are_counted_once_a_kernel():
    x = jnp.ones((1000, 100))

    def moved(function):
        return traffic.bytes_moved(jax.jit(function).lower(x).compile().as_text())

    assert moved(lambda x: 1.5 * jnp.sin(x)) == 2 * x.nbytes
    assert moved(lambda x: (jnp.sin(x) @ jnp.ones((100, 100))).astype(jnp.bfloat16)) > 4 * x.nbytes
    assert moved(lambda x: lax.fori_loop(0, 9, lambda _, x: jnp.sin(x), x)) is None


def test_memory_is_that_of_all_devices():
    mesh = jaxmaml.task_mesh()

    def function(x):
        return jnp.sort(jnp.outer(x, x), axis=0) @ x

    split = jax.shard_map(function, mesh=mesh, in_specs=jax.P("tasks"), out_specs=jax.P("tasks"))
    one, every = (
        reporting.temporaries(jax.jit(f).lower(jnp.ones(n)).compile())
        for f, n in ((function, 64), (split, 64 * mesh.size))
    )
    assert mesh.size > 1
    assert every == mesh.size * one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv4-omniglot", "conv4-mini"])
def test_the_plain_models_are_the_same_functions(quick_compiles, name):
    case = next(case for case in cases.CASES.values() if case.model == name)
    params, tasks = case.problem()
    inputs = tasks.support[0][0, :2]
    outputs = [case.network(plain).apply(params, inputs) for plain in (False, True)]
    np.testing.assert_allclose(*outputs, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_both_ways_of_a_convolution_are_timed():
    config = convolutions.Config(num_tasks=2, repeats=1)
    rows = [convolutions.measure(config, "Conv4, 84 x 84, 3", "output", shared) for shared in (True, False)]
    assert [row["kernels"] for row in rows] == [1, 2]
    assert [row["chosen"] for row in rows] == ["own", "own"]
    assert all(set(row["microseconds"]) == {"products", "own"} for row in rows)
    strided = convolutions.measure(config, "Conv4, Omniglot, 3", "kernel", False)
    assert strided["chosen"] == "products"
    assert set(strided["microseconds"]) == {"products"}
    assert convolutions.table([*rows, strided]).row_count == 1
