"""The comparison of starts for streams: the loss of each chunk, before the step of gradient descent on it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table

import jaxmaml
from benchmarks.adaptation.problem import train
from benchmarks.common import reporting
from benchmarks.streams import figure
from jaxmaml import checks

NUM_STREAMS, VALID_STREAMS = 200, 100
NUM_CHUNKS, CHUNK_LENGTH = 16, 16
NUM_HIDDEN = 32
TRAIN_CHUNKS, INNER_RATE = 16, 0.1
OUTER_STEPS, NUM_TASKS, OUTER_RATE = 1500, 16, 3e-3
RATES = (0.0, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3)


def compare(options: dict[str, Any], config: dict[str, Any], console: rich.console.Console) -> dict[str, Any]:
    """Train the starts, learn new streams online from each, and write the result and its figure.

    Args:
      options: The fields of `step_counts.Config`.
      config: Those that the result file keeps.
      console: Where the table goes.
    """
    if options["algorithms"] or options["run"] is not None or options["data_dir"] is not None:
        raise SystemExit("--task streams compares starts: it takes neither --algorithms nor --run nor --data-dir.")
    began = time.perf_counter()
    outer_steps = checks.positive_int("outer_steps", options["outer_steps"] or OUTER_STEPS)
    num_streams = checks.positive_int("num_tasks", options["num_tasks"] or NUM_STREAMS)
    num_chunks = checks.positive_int("num_steps", options["num_steps"] or NUM_CHUNKS)
    train_key, valid_key, test_key = jax.random.split(jax.random.key(options["seed"]), 3)
    model = jaxmaml.nn.GRU(NUM_HIDDEN, 1)
    loss_fn = jaxmaml.mean_squared_error(model.apply)
    starts, training = train_all(model, loss_fn, train_key, outer_steps)
    score = scorer(loss_fn, num_chunks)
    rows: dict[str, Any] = {}
    curves: dict[str, jaxmaml.Curve] = {}
    for name, params in starts.items():
        with console.status(f"rates on validation streams: {name}"):
            valid = {rate: score(params, rate, valid_key, min(VALID_STREAMS, num_streams)) for rate in RATES}
        means = {rate: float(np.mean(curve.mean)) for rate, curve in valid.items()}
        rate = min(means, key=lambda rate: means[rate] if np.isfinite(means[rate]) else np.inf)
        curves[name] = score(params, rate, test_key, num_streams)
        rows[name] = described(curves[name], rate)
        rows[name]["validation"] = dict(zip(map(str, RATES), reporting.numbers(means.values()), strict=True))
        console.print(f"{name}: rate {rate:g}, mean loss {rows[name]['mean_of_all']:.4f}")
    name = "pretrained, not adapted"
    curves[name] = score(starts["pretrained"], 0.0, test_key, num_streams)
    rows[name] = described(curves[name], 0.0)
    for name, row in rows.items():
        # On the same streams, of which some are harder for every start.
        more = np.mean(curves[name].per_task - curves["MAML"].per_task, axis=1)
        row["more_than_maml"] = reporting.numbers([more.mean(), 1.96 * more.std() / np.sqrt(len(more))])
    result = {
        "benchmark": "step_counts of streams",
        "command": reporting.command_line("benchmarks.step_counts"),
        "config": config | {"num_tasks": num_streams, "num_steps": num_chunks},
        "environment": reporting.environment(),
        "metric": "MSE of the next value, of a chunk before the step on it",
        "protocol": {
            "family": f"jaxmaml.tasks.drifting_signals, chunks of {CHUNK_LENGTH}",
            "model": f"GRU, {NUM_HIDDEN} hidden units, state zero at the start of each chunk",
            "training": f"{NUM_TASKS} streams of {TRAIN_CHUNKS + 1} chunks an outer step, the same for MAML and "
            f"pretraining; Adam at {OUTER_RATE}, falling by a cosine, gradients clipped to norm 1",
            "adaptation": "a step of SGD on each chunk after it is scored, at the rate that is best for the start on "
            f"{min(VALID_STREAMS, num_streams)} validation streams",
        },
        "training": training,
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }
    console.print(make_table(result))
    path = options["output_dir"] / "step_counts_streams.json"
    reporting.write_json(path, result)
    figure.draw(result, path.with_suffix(".png"))
    return result


def train_all(model, loss_fn: jaxmaml.LossFn, key, outer_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The starts, from the same initial parameters and the same streams, and how they were trained."""
    init_key, train_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros((1, 1)))
    stream = jaxmaml.supports.stream()
    outer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(OUTER_RATE, outer_steps))
    )
    inner = optax.sgd(INNER_RATE)
    learners = {
        "MAML": jaxmaml.maml(
            loss_fn,
            inner,
            outer,
            num_inner_steps=TRAIN_CHUNKS,
            supports=stream,
            queries=stream,
            objective=jaxmaml.objectives.online(),
        ),
        # Without streams its loss is that of all chunks at once, at the same parameters.
        "pretrained": jaxmaml.joint_training(loss_fn, inner, outer, num_inner_steps=1),
    }
    starts, training = {}, {}
    for name, learner in learners.items():
        starts[name], seconds = train(
            name,
            learner,
            params,
            jaxmaml.tasks.drifting_signals(TRAIN_CHUNKS, CHUNK_LENGTH),
            train_key,
            outer_steps=outer_steps,
            num_tasks=NUM_TASKS,
            steps_per_dispatch=min(50, outer_steps),
        )
        training[name] = {"outer_steps": outer_steps, "seconds": round(seconds, 1)}
    return starts | {"random": params}, training


def scorer(loss_fn: jaxmaml.LossFn, num_chunks: int):
    """`(params, rate, key, num_streams) -> Curve` of online gradient descent, compiled once for all rates."""
    rule = jaxmaml.InnerRule(
        init_params=lambda params: jnp.zeros(()),
        init=lambda rate, params: (),
        update=lambda grads, state, params, rate, step, **extra: (jax.tree.map(lambda g: -rate * g, grads), state),
    )
    stream = jaxmaml.supports.stream()
    learner = jaxmaml.maml(loss_fn, rule, optax.identity(), num_inner_steps=1, supports=stream, queries=stream)
    sample = jaxmaml.tasks.drifting_signals(num_chunks, CHUNK_LENGTH)

    def score(params, rate, key, num_streams) -> jaxmaml.Curve:
        state = learner.init(params)._replace(rule_params=jnp.array(rate, jnp.float32))
        options = {"num_inner_steps": num_chunks, "num_tasks": num_streams, "chunk_size": 100}
        return jax.device_get(jaxmaml.evaluate(learner, loss_fn, state, sample, key, **options).query_loss)

    return score


def described(curve: jaxmaml.Curve, rate: float) -> dict[str, Any]:
    """The means over streams at each chunk, and over all chunks, with their 95% confidence intervals."""
    per_stream = np.mean(curve.per_task, axis=1)
    return {
        "step_size": rate,
        "mean": reporting.numbers(curve.mean),
        "ci95": reporting.numbers(curve.ci95),
        "mean_of_all": float(per_stream.mean()),
        "ci95_of_all": float(1.96 * per_stream.std() / np.sqrt(len(per_stream))),
    }


def make_table(result: dict[str, Any]) -> rich.table.Table:
    head, *body = cells(result)
    number = result["config"]["num_tasks"]
    table = rich.table.Table(title=f"MSE of chunk k before the step on it, {number} new streams, 95% CI")
    for name in head:
        table.add_column(name, justify="left" if name == "start" else "right")
    for row in body:
        table.add_row(*row)
    return table


def markdown(result: dict[str, Any]) -> str:
    """The table of a result, as the pages have it."""
    head, *body = cells(result)
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The table of a result: a row of heads, and a row for each start."""
    last = result["config"]["num_steps"]
    shown = [k for k in (0, 1, 2, 4, 8, 16, 32) if k <= last]
    table = [["start", "step size", *(f"k = {k}" for k in shown), "mean of all"]]
    for name, row in result["rows"].items():
        pairs = [(row["mean"][k], row["ci95"][k]) for k in shown] + [(row["mean_of_all"], row["ci95_of_all"])]
        values = ["diverged" if mean is None else f"{mean:.4f} ± {ci95:.4f}" for mean, ci95 in pairs]
        table.append([name, f"{row['step_size']:g}", *values])
    return table
