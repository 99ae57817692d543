"""The comparison of starts for neural fields, from training to the result file."""

import time
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

import jaxmaml
from benchmarks.common import reporting
from benchmarks.fields import figure, starts
from benchmarks.fields.fine_tuning import FineTuning, steps_to
from jaxmaml import checks

NUM_IMAGES, NUM_STEPS = 20, 1000
VALID_IMAGES, VALID_STEPS = 8, (100, 400)
PICTURED = (0, 1, 2, 10, 100)
RESAMPLES = 1000
LEVELS = (30, 40)
# Tancik et al., 2021: from a standard start, over 30 times as many steps as the two from the learned one.
PAPERS_FACTOR = "over 30 (Adam at one rate for the standard start)"


def compare(options: dict[str, Any], config: dict[str, Any], console: rich.console.Console) -> dict[str, Any]:
    """Train the starts, fit new images from each, and write the result and its figure.

    Args:
      options: The fields of `step_counts.Config`.
      config: Those that the result file keeps.
      console: Where the table goes.
    """
    if options["algorithms"] or options["run"] is not None:
        raise SystemExit("--task fields compares starts: it takes neither --algorithms nor --run.")
    began = time.perf_counter()
    data_dir, outer_steps = options["data_dir"], options["outer_steps"] or starts.OUTER_STEPS
    num_images = checks.positive_int("num_tasks", options["num_tasks"] or NUM_IMAGES)
    num_steps = checks.positive_int("num_steps", options["num_steps"] or NUM_STEPS, at_least=2)
    train_key, valid_key, test_key = jax.random.split(jax.random.key(options["seed"]), 3)
    net = starts.model(1 if data_dir is None else 3)
    loss_fn = jaxmaml.reconstruction(net.apply)
    sample, *held_out = starts.samplers(data_dir)
    valid, test = (
        jax.vmap(part)(jax.random.split(part_key, number))
        for part, part_key, number in zip(
            held_out, (valid_key, test_key), (min(VALID_IMAGES, num_images), num_images), strict=True
        )
    )
    compared = starts.train_all(net, loss_fn, sample, train_key, outer_steps)
    fine_tuning = FineTuning(loss_fn, chunk_size=4)
    valid_steps = min(VALID_STEPS[0], num_steps), min(VALID_STEPS[1], num_steps)
    rows: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    target = None
    pictures = {}
    for start in compared:
        with console.status(f"fitting images from: {start.name}"):
            optimizer, tried = fine_tuning.best(start, valid, valid_steps, target)
            if target is None:  # MAML's validation images say what the others' rates are chosen for.
                target = float(fine_tuning.psnr(start.params, optimizer, valid, 2).mean(0)[2])
            curves[start.name] = fine_tuning.psnr(start.params, optimizer, test, num_steps)
            pictures[start.name] = reconstructions(
                net, fine_tuning.learner, fine_tuning.state(start.params, optimizer), test, num_steps
            )
        rows[start.name] = {"optimizer": str(optimizer), "candidates": tried}
        console.print(
            f"{start.name}: {optimizer}, {curves[start.name].mean(0)[[0, 1, 2]].round(1)} dB after 0, 1, 2 steps"
        )
    shown = log_spaced(num_steps)
    for name, row in rows.items():
        row |= counted(curves, name) | described(curves[name], shown)
    result = {
        "benchmark": "step_counts of neural fields",
        "command": reporting.command_line("benchmarks.step_counts"),
        "config": config | {"num_tasks": num_images, "num_steps": num_steps},
        "environment": reporting.environment(),
        "metric": "PSNR in dB",
        "protocol": protocol(net, data_dir is not None, valid_steps, len(jax.tree.leaves(valid)[0])),
        "training": {
            start.name: {"outer_steps": start.outer_steps, "seconds": start.seconds, "note": start.note}
            for start in compared
        },
        "target_db": float(curves["MAML"].mean(0)[2]),
        "papers_factor": PAPERS_FACTOR,
        "steps": shown,
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }
    console.print(make_table(result))
    path = options["output_dir"] / f"step_counts_fields{'' if data_dir is None else '_images'}.json"
    reporting.write_json(path, result)
    image = test.query.targets[0].reshape(starts.SIZE, starts.SIZE, -1)
    figure.draw(result, pictures, np.asarray(image), path.with_suffix(".png"))
    return result


def reconstructions(
    net: jaxmaml.nn.Siren,
    learner: jaxmaml.MetaLearner,
    state: jaxmaml.MetaState,
    tasks: jaxmaml.Task,
    num_steps: int,
) -> dict[int, np.ndarray]:
    """The first image, as it is after each of the steps that the figure shows."""
    support, query = jax.tree.map(lambda leaf: leaf[0], tasks)
    last = min(max(PICTURED), num_steps)

    @jax.jit
    def fitted(state):
        return learner.adapt(
            state, support, num_inner_steps=last, observe=lambda params: net.apply(params, query.inputs)
        )

    seen = np.asarray(fitted(state)[1].observed)
    return {k: seen[k].reshape(starts.SIZE, starts.SIZE, -1) for k in PICTURED if k <= last}


def log_spaced(num_steps: int) -> list[int]:
    """The steps at which a result keeps its curves: all of the first 20, then ever fewer."""
    later = np.round(np.geomspace(20, max(num_steps, 20), 60)).astype(int)
    return sorted({step for step in (*range(21), 50, 100, *later.tolist(), num_steps) if step <= num_steps})


def described(curve: np.ndarray, shown: list[int]) -> dict[str, Any]:
    """The mean over images at those steps, with its 95% confidence interval."""
    mean, std = curve.mean(0)[shown], curve.std(0)[shown]
    return {"mean": reporting.numbers(mean), "ci95": reporting.numbers(1.96 * std / np.sqrt(len(curve)))}


def counted(curves: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """The steps that a start needs for the PSNR that MAML has after two, as means over images.

    The interval is of the factor `steps / 2`, with the images drawn again a thousand times.
    """
    maml, curve = curves["MAML"], curves[name]
    picks = np.random.default_rng(0).integers(len(maml), size=(RESAMPLES, len(maml)))
    steps = steps_to(curve.mean(0), maml.mean(0)[2])
    drawn = [steps_to(curve[pick].mean(0), maml[pick].mean(0)[2]) for pick in picks]
    factors = np.array([np.inf if count is None else count / 2 for count in drawn])
    low, high = np.quantile(factors, (0.025, 0.975), method="nearest")
    return {
        "steps_to": {f"{level} dB": steps_to(curve.mean(0), level) for level in LEVELS},
        "steps_to_target": steps,
        "factor": None if steps is None else steps / 2,
        "factor_interval": reporting.numbers([low, high]),
    }


def protocol(net: jaxmaml.nn.Siren, real: bool, valid_steps: tuple[int, int], valid_images: int) -> dict[str, Any]:
    return {
        "images": f"{starts.SIZE} x {starts.SIZE}, {net.features[-1]} channels, "
        + ("mini-ImageNet's classes, reduced" if real else "random phantoms, jaxmaml.tasks.fields.phantoms"),
        "model": f"SIREN, {' - '.join(map(str, net.features))}, w0 = {net.w0:g}",
        "points": "all pixels, support and query alike",
        "optimizers": "SGD and Adam at the rates of `candidates`, and both after the steps that a start was trained "
        f"for; for each start the one that reaches MAML's PSNR after two steps first, on {valid_images} validation "
        f"images: all are tried for {valid_steps[0]} steps and, if none reaches it, the highest three for "
        f"{valid_steps[1]}; of equal ones the highest at the end",
        "factor": "steps to MAML's mean PSNR after two steps, divided by two; its interval by resampling the images",
    }


def make_table(result: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(
        title=f"PSNR in dB after k steps, {result['config']['num_tasks']} new images, 95% CI; "
        f"target {result['target_db']:.1f} dB (the paper's factor: {result['papers_factor']})"
    )
    head, *body = cells(result)
    for name in head:
        table.add_column(name, justify="right" if name.startswith(("k =", "steps", "factor")) else "left")
    for row in body:
        table.add_row(*row)
    return table


def markdown(result: dict[str, Any]) -> str:
    """The table of a result, as the pages have it."""
    head, *body = cells(result)
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " --: |" * (len(head) - 2)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The table of a result: a row of heads, and a row for each start."""
    steps, rows = result["steps"], result["rows"]
    shown = [step for step in (0, 1, 2, 10, 20, 1000) if step in steps]
    levels = list(next(iter(rows.values()))["steps_to"])

    def count(reached: int | None) -> str:
        return f"> {steps[-1]}" if reached is None else str(reached)

    def factor(value: float | None) -> str:
        return f"> {steps[-1] / 2:g}" if value is None else f"{value:g}"

    def psnr(row: dict[str, Any], place: int) -> str:
        mean, ci95 = row["mean"][place], row["ci95"][place]
        return "diverged" if mean is None else f"{mean:.1f} ± {ci95:.1f}"

    heads = ["start", "optimizer", *(f"k = {step}" for step in shown), *(f"steps to {level}" for level in levels)]
    table = [[*heads, "steps to target", "factor"]]
    for name, row in rows.items():
        low, high = row["factor_interval"]
        table.append(
            [
                name,
                row["optimizer"],
                *(psnr(row, steps.index(step)) for step in shown),
                *(count(reached) for reached in row["steps_to"].values()),
                count(row["steps_to_target"]),
                f"{factor(row['factor'])} ({factor(low)} to {factor(high)})",
            ]
        )
    return table
