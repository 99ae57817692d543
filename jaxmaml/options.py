"""The axes of the family as keyword arguments: what every factory takes, their defaults and their checks."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, cast

import jax
from jax.sharding import Mesh

from jaxmaml import checks
from jaxmaml.parameter_selection import Leaves
from jaxmaml.types import PyTree


class Implicit(NamedTuple):
    r"""Implicit differentiation of a proximal inner problem (iMAML): `derivative=Implicit(...)`.

    The inner loop descends `L(phi, support) + strength / 2 ||phi - theta||^2`. At its minimum, whatever path led
    there, the meta-gradient of `theta` is `(I + H / strength)^{-1} grad L(phi, query)`, with `H` the Hessian of the
    support loss at `phi`, solved for by conjugate gradients.

    Attributes:
      strength: `lambda` of the proximal term; > 0.
      max_solver_steps: At most so many steps of conjugate gradients; 5 in the paper.
      tolerance: They end at a residual of so much of the right-hand side, and `update` warns where they
        end above ten times that.
      damping: Solve `((1 + damping) I + H / (strength + shift)) u = v` instead. 0 is the paper's
        formula; the released code has 1 here.
      shift: See `damping`; 0 is the paper's formula, the released code has 10.

    References:
      Rajeswaran et al., 2019, https://arxiv.org/abs/1909.04630
    """

    strength: float = 2.0
    max_solver_steps: int = 5
    tolerance: float = 1e-2
    damping: float = 0.0
    shift: float = 0.0


class Evolution(NamedTuple):
    r"""Zero-order outer gradients (ES-MAML): `derivative=Evolution(...)`.

    The meta-loss `F` is smoothed by Gaussian noise, whose gradient needs values of `F` only:
    `grad = 1 / (2 std) E[(F(theta + std e) - F(theta - std e)) e]`, each task with its own `e ~ N(0, I)`.

    Attributes:
      std: Standard deviation of the perturbation; > 0.
      num_pairs: Antithetic pairs of perturbations for each task.

    References:
      Song et al., 2020, https://arxiv.org/abs/1910.01215
    """

    std: float = 0.01
    num_pairs: int = 8


class Execution(TypedDict, total=False):
    """How an outer step is executed: keyword arguments that every factory takes. None changes the maths.

    Attributes:
      chunk_size: How many tasks are executed at once (on each device of a mesh): a number, `None` for all,
        or `"auto"`, the default: as many as fit the cache of a CPU or the memory of another device, by a count of
        what one task holds. What it picked goes to the log `jaxmaml.task_axis`, at level INFO. A number that does not
        divide that of tasks wastes the rest of the last chunk. Changes nothing but rounding.
      query_chunk_size: How many query examples are differentiated at once, a number that divides theirs; `None`,
        the default, for all. For a `loss_fn` that is a mean over examples which do not see each
        other: with batch statistics, each chunk has its own. Scalars in its aux are averaged, arrays joined.
      mesh: A `jax.sharding.Mesh` over whose devices the tasks are split, such as `jaxmaml.task_mesh()`;
        `None`, the default, for none. Exact; tasks that do not divide evenly leave devices idle.
      remat: What the inner loop keeps for its derivative, and what it computes again.
        `"gradients"`, the default: parameters and optimizer state before each inner step, and those inner
        gradients that the optimizer's derivative needs; of two to five small steps (256 KB together on a CPU,
        elsewhere 256 MB a task, and 20 products each) whatever saves time. `"steps"`: not the gradients.
        `"recursive"`, by binomial checkpointing: parameters and state before few steps, 14 of 100 and 18 of 1,000,
        and up to `ceil(log10 K)` computations of each of `K` steps before its derivative; no forward-mode
        derivative goes through it.
        `"none"`: all that JAX would keep; what `"gradients"` means for one step.
      matmul_precision: Of the products in `loss_fn`, as `jax.default_matmul_precision` takes it:
        `"bfloat16"`, `"tensorfloat32"`, `"float32"`, `"BF16_BF16_F32"` ...; `None`, the default, for the
        platform's own.
      rewrite: Whether the traced program of the loss and of the outer step may be rewritten: maxima and minima get
        derivatives that compare no value which the compiler may have rounded differently, functions with a
        `custom_vjp` arguments that are all batched over tasks, and matrix products on a CPU the operand order that it
        is fast at. `True` by default; with `False` the program runs as plain JAX has it. The environment variable
        `JAXMAML_REWRITE=0` switches all three off for every learner, and makes the layers in `jaxmaml.nn` plain JAX as
        well.
    """

    chunk_size: int | Literal["auto"] | None
    query_chunk_size: int | None
    mesh: Mesh | None
    remat: Literal["none", "gradients", "steps", "recursive"]
    matmul_precision: str | None
    rewrite: bool


class Axes(Execution, total=False):
    """Where a learner stands on the axes of the family: keyword arguments that every factory takes beside its own.

    A factory is a point on these axes, and fixes those that make it what it is; the others are free to combine.
    Leaves are told by `None` (all), a name in their path (`"Dense_2"`) or a list of such, a predicate of the path
    (`lambda path: path.endswith("bias")`), or a tree of booleans.

    Attributes:
      derivative: How the meta-gradient is computed. `"mixed"`, the default: exact, forward over reverse;
        `"reverse"`: exact, plain; `"first_order"`: inner gradients taken as constants; or an `Implicit(...)` or
        `Evolution(...)`.
      adapted: The leaves that move in the inner loop, all by default. For the others no gradient is computed there.
      start: `(params, support) -> params`, what a task's adaptation starts from, of the same shapes. Differentiated.
        `None`, the default, for the parameters themselves.
      per_step: Leaves with a value for each inner step, which `init` makes of one by copying; not adapted. Beyond
        training's steps the last counts. After `k` steps a model is judged with the values of step `k - 1`.
      inner_batch_size: Examples of the support that an inner step sees, in turn from random orders of it; `None`, the
        default, for all. At most as many as there are.
      objective: What the outer loop descends: `last_step`, the default, `multi_step(...)`, `displacement`,
        `chaser(...)` or `before_adaptation`, of `jaxmaml.objectives`.
      first_order_steps: How many outer steps take first-order derivatives, before the others; both ways are compiled
        at once, so nothing is when they change. 0 by default.
      seed: Of what is random: the orders of `inner_batch_size`, and `Evolution`. Another in each outer step.
    """

    derivative: str | Implicit | Evolution
    adapted: Leaves
    start: Callable[[PyTree, Any], PyTree] | None
    per_step: Leaves
    inner_batch_size: int | None
    objective: Callable[..., Any] | None
    first_order_steps: int
    seed: int


class Options(NamedTuple):
    """A learner's place on every axis: `Axes`, completed by the defaults; their meaning is told there."""

    chunk_size: int | str | None = "auto"
    query_chunk_size: int | None = None
    mesh: Mesh | None = None
    remat: str = "gradients"
    matmul_precision: str | None = None
    rewrite: bool = True
    derivative: str | Implicit | Evolution = "mixed"
    adapted: Leaves = None
    start: Callable[[PyTree, Any], PyTree] | None = None
    per_step: Leaves = None
    inner_batch_size: int | None = None
    objective: Callable[..., Any] | None = None
    first_order_steps: int = 0
    seed: int = 0


def fixed(axes: Axes, **own: Any) -> Axes:
    """`axes` with those that make an algorithm what it is, or raise where the caller has chosen them too."""
    clash = set(own) & set(axes)
    if clash:
        raise TypeError(f"`{min(clash)}` is what makes this algorithm; jaxmaml.maml takes any other.")
    return cast(Axes, {**axes, **own})


def complete(axes: Axes) -> Options:
    """Return `axes` completed by the defaults, or raise where one is unknown or malformed."""
    unknown = set(axes) - set(Options._fields)
    if unknown:
        raise TypeError(f"Unexpected argument `{min(unknown)}`; the axes are {', '.join(Options._fields)}.")
    options = Options(**axes)
    _check_execution(options)
    for name in ("start", "objective"):
        if getattr(options, name) is not None:
            checks.function(name, getattr(options, name))
    if options.inner_batch_size is not None:
        checks.positive_int("inner_batch_size", options.inner_batch_size)
    checks.positive_int("first_order_steps", options.first_order_steps, at_least=0)
    checks.positive_int("seed", options.seed, at_least=0)
    if isinstance(options.derivative, (Implicit, Evolution)):
        _check_estimator(options.derivative, options)
    else:
        checks.one_of("derivative", options.derivative, ("mixed", "reverse", "first_order"))
    return options


def _check_execution(options: Options) -> None:
    if isinstance(options.chunk_size, str):
        checks.one_of("chunk_size", options.chunk_size, ("auto",))
    elif options.chunk_size is not None:
        checks.positive_int("chunk_size", options.chunk_size)
    if options.query_chunk_size is not None:
        checks.positive_int("query_chunk_size", options.query_chunk_size)
    if not isinstance(options.mesh, (Mesh, type(None))):
        kind = type(options.mesh).__name__
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh such as jaxmaml.task_mesh(), got {kind}.")
    checks.one_of("remat", options.remat, ("none", "gradients", "steps", "recursive"))
    checks.boolean("rewrite", options.rewrite)
    try:
        with jax.default_matmul_precision(options.matmul_precision):
            pass
    except ValueError as error:
        raise ValueError(f"`matmul_precision` must be one that jax.default_matmul_precision takes: {error}") from None


def _check_estimator(derivative: Implicit | Evolution, options: Options) -> None:
    if options.first_order_steps:
        raise ValueError(f"`first_order_steps` needs inner derivatives, which {type(derivative).__name__} has not.")
    if isinstance(derivative, Evolution):
        checks.positive("std", derivative.std)
        checks.positive_int("num_pairs", derivative.num_pairs)
        return
    checks.positive("strength", derivative.strength)
    checks.positive("tolerance", derivative.tolerance)
    checks.positive_int("max_solver_steps", derivative.max_solver_steps)
    checks.number("damping", derivative.damping, at_least=0.0)
    checks.number("shift", derivative.shift, at_least=0.0)
    for name in ("objective", "inner_batch_size", "per_step"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"`{name}` does not go with implicit derivatives: they are those of a minimum of the whole support "
                "loss, whatever path led there."
            )
