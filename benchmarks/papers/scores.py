"""The scores of a trained state on a recipe's meta-test tasks."""

import hashlib
from typing import Any

import jax
import numpy as np

import jaxmaml
from benchmarks.papers.recipes import Recipe


class Scorer:
    """Evaluates states on the same meta-test tasks."""

    def __init__(self, recipe: Recipe, learner: jaxmaml.MetaLearner, sample, key):
        self.recipe, self.learner, self.sample, self.key = recipe, learner, sample, key

    def evaluate(self, state: jaxmaml.MetaState, num_inner_steps: int) -> jaxmaml.Curve:
        recipe = self.recipe
        result = jaxmaml.evaluate(
            self.learner,
            recipe.loss_fn(),
            state,
            self.sample,
            self.key,
            num_inner_steps=num_inner_steps,
            num_tasks=recipe.test_tasks,
            chunk_size=4,
        )
        assert result.accuracy is not None
        return jax.device_get(result.accuracy)

    def accuracy(self, state: jaxmaml.MetaState) -> dict[str, float]:
        """The accuracy after the recipe's test steps, for the history of a run."""
        last = self.recipe.num_test_inner_steps
        curve = self.evaluate(state, last)
        return {
            "test_accuracy": 100 * float(curve.mean[last]),
            "test_ci95": 100 * float(curve.ci95[last]),
            "test_inner_steps": last,
        }

    def result(self, state: jaxmaml.MetaState) -> dict[str, Any]:
        """The number of the table, the curve over further steps, and the episodes by seed and digest."""
        last = self.recipe.num_test_inner_steps
        curve = self.evaluate(state, max(20, last))
        return {
            "accuracy": 100 * float(curve.mean[last]),
            "ci95": 100 * float(curve.ci95[last]),
            "curve": {"mean": (100 * curve.mean).tolist(), "ci95": (100 * curve.ci95).tolist()},
            "episodes": {"seed": self.recipe.seed, "number": self.recipe.test_tasks, "sha256": self.digest()},
        }

    def digest(self) -> str:
        """A digest of every support and query image, in order."""
        digest = hashlib.sha256()
        draw = jax.jit(self.sample)
        for key in jax.random.split(self.key, self.recipe.test_tasks):
            for leaf in jax.tree.leaves(jax.device_get(draw(key))):
                digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()
