"""The papers' set-ups, one frozen dataclass each."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import optax

import jaxmaml

#: Increased when the meaning of a result changes, so that `benchmarks.report` does not mix results.
PROTOCOL = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of a paper's table: everything that its number depends on. Every field can be overridden."""

    algorithm: Literal["maml", "fomaml", "reptile", "meta_sgd", "anil", "boil", "maml_plus_plus", "proto_maml"] = "maml"
    dataset: Literal["omniglot", "mini_imagenet"] = "omniglot"
    num_ways: int = 5
    num_shots: int = 1
    num_queries: int = 1
    """Queries a class in training."""
    num_test_queries: int = 1
    """Queries a class at test: batch statistics are theirs, so it moves accuracy by points."""
    num_inner_steps: int = 1
    num_test_inner_steps: int = 3
    inner_step_size: float = 2.0
    """On the mean cross-entropy; the original code's sum over ways makes it a number of ways times larger."""
    num_tasks: int = 32
    """Tasks in an outer step."""
    outer_steps: int = 60_000
    outer_step_size: float = 1e-3
    """Adam's; Reptile's is 1 falling to 0."""
    cosine: bool = False
    """Let the outer step size fall to a hundredth along a cosine."""
    pretrain_steps: int = 0
    """Steps of joint training before: meta-training starts from the body of a classifier of all training classes."""
    prototype_scale: float = 1.0
    """Of the squared distances that Proto-MAML's head starts from."""
    clip: float | None = None
    """Outer gradients are clipped to this, entry by entry."""
    num_filters: int = 64
    normalisation: Literal["transductive", "support", "layer", "group"] = "transductive"
    """Batch statistics of the query itself; of the support alone; or of each example."""
    seed: int = 0
    test_tasks: int = 600
    valid_tasks: int = 300
    valid_every: int = 1000
    paper_accuracy: float | None = None
    """In per cent, with its 95% interval."""
    paper_ci95: float | None = None
    paper: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (28, 28, 1) if self.dataset == "omniglot" else (84, 84, 3)

    @property
    def rotate(self) -> bool:
        """Whether rotations of a class by multiples of 90 degrees are classes of their own."""
        return self.dataset == "omniglot"

    def model(self, num_classes: int | None = None) -> jaxmaml.nn.Conv4:
        """Conv-4 in the data set's form, for a number of ways by default."""
        make = jaxmaml.nn.Conv4.omniglot if self.dataset == "omniglot" else jaxmaml.nn.Conv4.mini_imagenet
        norm = self.normalisation if self.normalisation in ("layer", "group") else "batch"
        return make(
            num_classes or self.num_ways,
            self.num_filters,
            normalisation=norm,
            use_scale=self.algorithm == "maml_plus_plus",
        )

    @functools.cache  # noqa: B019  (functions are compiled by identity: the same at every call)
    def loss_fn(self) -> jaxmaml.LossFn:
        apply: Any = self.model().apply
        return jaxmaml.cross_entropy(jaxmaml.nn.inductive(apply) if self.normalisation == "support" else apply)

    def sampler(self, classes: jaxmaml.tasks.ImageClasses, num_queries: int):
        """A sampler of episodes; Omniglot's classes are rotated by multiples of 90 degrees."""
        sample = jaxmaml.tasks.image_episodes(
            classes.images,
            num_ways=self.num_ways,
            num_shots=self.num_shots,
            num_queries=num_queries,
            rotate=self.rotate,
        )
        return jaxmaml.tasks.with_support(sample) if self.normalisation == "support" else sample

    @functools.cache  # noqa: B019
    def learner(self, mesh: jax.sharding.Mesh | None = None) -> jaxmaml.MetaLearner:
        """The algorithm; its tasks are split over `mesh`."""
        schedule = self.outer_step_size
        if self.cosine:
            schedule = optax.cosine_decay_schedule(self.outer_step_size, self.outer_steps, alpha=0.01)
        outer = optax.adam(schedule)
        if self.clip is not None:
            outer = optax.chain(optax.clip(self.clip), outer)
        loss_fn, inner = self.loss_fn(), optax.sgd(self.inner_step_size)
        steps: dict[str, Any] = {"num_inner_steps": self.num_inner_steps, "mesh": mesh}
        if self.algorithm == "reptile":
            outer = optax.sgd(optax.linear_schedule(1.0, 0.0, self.outer_steps))
            inner = optax.adam(self.inner_step_size, b1=0.0)
        if self.algorithm in ("anil", "boil"):
            return getattr(jaxmaml, self.algorithm)(loss_fn, inner, outer, head="Dense_0", **steps)
        if self.algorithm == "meta_sgd":
            return jaxmaml.meta_sgd(loss_fn, self.inner_step_size, outer, **steps)
        if self.algorithm == "proto_maml":
            embed: Any = functools.partial(self.model().apply, head=False)
            return jaxmaml.proto_maml(
                loss_fn, inner, outer, embed=embed, head="Dense_0", scale=self.prototype_scale, **steps
            )
        if self.algorithm == "maml_plus_plus":
            return jaxmaml.maml_plus_plus(
                loss_fn,
                self.inner_step_size,
                self.outer_step_size,
                num_outer_steps=self.outer_steps,
                normalisation=lambda path: "BatchNorm" in path,
                **steps,
            )
        return getattr(jaxmaml, self.algorithm)(loss_fn, inner, outer, **steps)

    def init(self, params: Any = None) -> jaxmaml.MetaState:
        """The initial state of meta-training, from random or from pretrained `params`."""
        if params is None:
            params = self.model().init(jax.random.key(self.seed), jax.numpy.zeros((1, *self.image_shape)))
        return self.learner().init(params)


_MAML, _NICHOL, _META_SGD = (
    "https://arxiv.org/abs/1703.03400",
    "https://arxiv.org/abs/1803.02999",
    "https://arxiv.org/abs/1707.09835",
)
_ANIL, _PLUS, _PROTO, _BASELINE = (
    "https://arxiv.org/abs/1909.09157",
    "https://arxiv.org/abs/1810.09502",
    "https://arxiv.org/abs/1903.03096",
    "https://arxiv.org/abs/2003.04390",
)


def _recipes() -> dict[str, Recipe]:
    five = Recipe(paper=_MAML)
    twenty = dataclasses.replace(five, num_ways=20, num_inner_steps=5, num_test_inner_steps=5, num_tasks=16)
    mini = dataclasses.replace(
        five,
        dataset="mini_imagenet",
        num_queries=15,
        num_inner_steps=5,
        num_test_inner_steps=10,
        inner_step_size=0.05,
        num_tasks=4,
        clip=10.0,
        num_filters=32,
    )
    settings = {
        "omniglot-5w1s": five,
        "omniglot-5w5s": dataclasses.replace(five, num_shots=5, num_queries=5, num_test_queries=5),
        "omniglot-20w1s": twenty,
        "omniglot-20w5s": dataclasses.replace(twenty, num_shots=5, num_queries=5, num_test_queries=5),
        "mini-imagenet-5w1s": mini,
        "mini-imagenet-5w5s": dataclasses.replace(mini, num_shots=5, num_test_queries=5, num_tasks=2),
    }
    # (algorithm, changes, paper, accuracy and interval in per cent for the settings in order)
    rows = {
        "maml": ("maml", {}, _MAML, [(98.7, 0.4), (99.9, 0.1), (95.8, 0.3), (98.9, 0.2), (48.70, 1.84), (63.11, 0.92)]),
        "fomaml": (
            "fomaml",
            {},
            _NICHOL,
            [(98.3, 0.5), (99.2, 0.2), (89.4, 0.5), (97.9, 0.1), (48.07, 1.75), (63.15, 0.91)],
        ),
        "reptile": (
            "reptile",
            {"inner_step_size": 1e-3, "num_inner_steps": 5, "num_test_inner_steps": 50, "num_tasks": 5},
            _NICHOL,
            [(97.68, 0.04), (99.48, 0.06), (89.43, 0.14), (97.12, 0.32), (49.97, 0.32), (65.99, 0.58)],
        ),
        "meta-sgd": (
            "meta_sgd",
            {"num_inner_steps": 1, "num_test_inner_steps": 1},
            _META_SGD,
            [(99.53, 0.26), (99.93, 0.09), None, None, (50.47, 1.87), (64.03, 0.94)],
        ),
        "anil": ("anil", {}, _ANIL, [None, None, (96.2, 0.5), (98.0, 0.3), (46.7, 0.4), (61.5, 0.5)]),
        "maml-plus-plus": (
            "maml_plus_plus",
            {"num_inner_steps": 5, "num_test_inner_steps": 5, "num_tasks": 8, "inner_step_size": 0.1},
            _PLUS,
            [(99.47, None), (99.93, None), (97.65, None), (99.33, None), (52.15, 0.26), (68.32, 0.44)],
        ),
        # The papers have no numbers for these data sets or this model.
        "proto-maml": ("proto_maml", {"inner_step_size": 0.1, "num_inner_steps": 1}, _PROTO, [None] * 6),
        "pretrained-maml": ("maml", {"pretrain_steps": 5000}, _BASELINE, [None] * 6),
    }
    recipes = {}
    for row, (algorithm, changes, paper, numbers) in rows.items():
        for (setting, base), number in zip(settings.items(), numbers, strict=True):
            accuracy, ci95 = number or (None, None)
            recipes[f"{row}-{setting}"] = dataclasses.replace(
                base, algorithm=algorithm, paper=paper, paper_accuracy=accuracy, paper_ci95=ci95, **changes
            )
    return recipes


RECIPES = _recipes()
