"""Fitting images from a start, by the optimizer and the rate that are best for it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml
from benchmarks.fields.starts import Start

SGD_RATES = (0.003, 0.01, 0.03, 0.1)
ADAM_RATES = (3e-4, 1e-3, 2e-3, 3e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`first` steps of SGD at `first_rate`, then SGD at `sgd_rate` or Adam at `adam_rate`; one of the two is zero."""

    first: int
    first_rate: float
    sgd_rate: float
    adam_rate: float

    def __str__(self) -> str:
        later = f"Adam {self.adam_rate:g}" if self.adam_rate else f"SGD {self.sgd_rate:g}"
        return f"{self.first} x SGD {self.first_rate:g}, then {later}" if self.first else later


def candidates(start: Start) -> list[Optimizer]:
    """Plain gradient descent and Adam at several rates, and both after the steps that the start was trained for."""
    later = [(rate, 0.0) for rate in SGD_RATES] + [(0.0, rate) for rate in ADAM_RATES]
    beginnings = [(0, 0.0), start.first] if start.first[0] else [(0, 0.0)]
    return [Optimizer(*first, *rates) for first in beginnings for rates in later]


class FineTuning:
    """Fits images from any parameters by any `Optimizer`, compiled once for all of them."""

    def __init__(self, loss_fn: jaxmaml.LossFn, *, chunk_size: int):
        # Its parameters are the optimizer's numbers, so that another one is not another program.
        rule = jaxmaml.InnerRule(lambda params: jnp.zeros(4), lambda numbers, params: _ADAM.init(params), _update)
        self.learner = jaxmaml.maml(loss_fn, rule, optax.identity(), num_inner_steps=1, derivative="first_order")
        self._loss_fn, self._chunk_size = loss_fn, chunk_size

    def state(self, params: Any, optimizer: Optimizer) -> jaxmaml.MetaState:
        numbers = jnp.array(dataclasses.astuple(optimizer), jnp.float32)
        return self.learner.init(params)._replace(rule_params=numbers)

    def psnr(self, params: Any, optimizer: Optimizer, tasks: jaxmaml.Task, num_steps: int) -> np.ndarray:
        """In dB after 0, 1, ... steps, `[num_images, num_steps + 1]`."""
        evaluation = jaxmaml.evaluate(
            self.learner,
            self._loss_fn,
            self.state(params, optimizer),
            tasks,
            num_inner_steps=num_steps,
            chunk_size=self._chunk_size,
        )
        return -10.0 * np.log10(np.asarray(evaluation.query_loss.per_task, np.float64))

    def best(
        self, start: Start, tasks: jaxmaml.Task, num_steps: tuple[int, int], target: float | None
    ) -> tuple[Optimizer, dict[str, Any]]:
        """The candidate that reaches `target` dB first, and what was found of each.

        All are tried for `num_steps[0]` steps. If none reaches the target, the three that are highest then are tried
        for `num_steps[1]`. Without a target, the steps that the start was trained for come first, and the highest wins.
        """
        tried = [optimizer for optimizer in candidates(start) if target is not None or optimizer.first]
        curves = {one: self.psnr(start.params, one, tasks, num_steps[0]).mean(0) for one in tried}

        def merit(one: Optimizer) -> tuple[float, float]:
            count = None if target is None else steps_to(curves[one], target)
            last = float(curves[one][-1])
            return (-np.inf if count is None else -count), last if np.isfinite(last) else -np.inf

        last_three = sorted(curves, key=merit)[-3:]
        if target is not None and merit(last_three[-1])[0] == -np.inf:
            curves |= {one: self.psnr(start.params, one, tasks, num_steps[1]).mean(0) for one in last_three}
        found = {str(one): _described(curve, target) for one, curve in curves.items()}
        return max(last_three, key=merit), found


_ADAM = optax.scale_by_adam()


def _update(grads, adam_state, params, numbers, step, **extra):
    first, first_rate, sgd_rate, adam_rate = numbers
    is_first = step < first
    directions, after = _ADAM.update(grads, adam_state, params)
    # Adam's averages begin with its first step.
    adam_state = jax.tree.map(lambda new, old: jnp.where(is_first, old, new), after, adam_state)
    rate = jnp.where(is_first, first_rate, sgd_rate)
    adam_rate = jnp.where(is_first, 0.0, adam_rate)
    updates = jax.tree.map(lambda g, direction: -rate * g - adam_rate * direction, grads, directions)
    return updates, adam_state


def steps_to(curve: np.ndarray, target: float) -> int | None:
    """The first step at which the curve is at the target or above; `None` if it never is."""
    reached = curve >= target
    return int(np.argmax(reached)) if reached.any() else None


def _described(curve: np.ndarray, target: float | None) -> dict[str, Any]:
    last = float(curve[-1])
    return {
        "steps": len(curve) - 1,
        "steps_to_target": None if target is None else steps_to(curve, target),
        "last_db": round(last, 2) if np.isfinite(last) else None,
    }
