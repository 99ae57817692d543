"""The axes of the family as keyword arguments that every factory takes, with their defaults and checks."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, cast

import jax
from jax.sharding import Mesh

from jaxmaml import checks, keys
from jaxmaml.parameter_selection import Leaves
from jaxmaml.types import PyTree, Supports


class Implicit(NamedTuple):
    r"""Implicit differentiation of a proximal inner problem (iMAML): `derivative=Implicit(...)`.

    The inner loop minimises `L(phi, support) + strength / 2 ||phi - theta||^2`. At its minimum, whatever path led
    there, the meta-gradient with respect to `theta` is `(I + H / strength)^{-1} grad L(phi, query)`, with `H` the
    Hessian of the support loss at `phi`. The linear system is solved by conjugate gradients.

    Attributes:
      strength: `lambda` of the proximal term; > 0.
      max_solver_steps: The largest number of conjugate gradient steps; 5 in the paper.
      tolerance: The solver stops when the norm of the residual is below this fraction of the right-hand side's norm.
        `update` warns where the final residual is more than ten times as large.
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
    """How an outer step is executed: keyword arguments that every factory takes.

    These options do not change the result beyond rounding, with one exception: `query_chunk_size` needs a loss that is
    a mean over independent examples.

    Attributes:
      chunk_size: The number of tasks that are executed at once on each device. `None` is all of them. `"auto"`, the
        default, is as many as fit the cache of a CPU or the memory of another device, by an estimate of one task's
        memory; the logger `jaxmaml.task_axis` reports the choice at level INFO. If the number of tasks is not a
        multiple of it, part of the last chunk is wasted.
      query_chunk_size: The number of query examples that are differentiated at once, which must divide the number of
        query examples; `None`, the default, is all of them. `loss_fn` must be a mean over independent examples: batch
        statistics, for instance, would be those of each chunk. Scalars in its auxiliary output are averaged over
        chunks, and arrays are concatenated.
      mesh: A `jax.sharding.Mesh` whose devices share the tasks, such as `jaxmaml.task_mesh()`; `None`, the default,
        for a single device. If the number of tasks is not a multiple of the number of devices, some are partly idle.
      remat: What the inner loop keeps for its derivative, and what is recomputed.
        `"gradients"`, the default, keeps the parameters and the optimizer state before each inner step, and the inner
        gradients where the optimizer's derivative needs them. Loops of two to five small steps are unrolled, and XLA
        chooses what to keep: those that hold at most 256 KB on a CPU or 256 MB elsewhere, all steps of one task
        together, with at most 20 matmuls in a step.
        `"steps"` keeps the parameters and the optimizer state, and recomputes the gradients.
        `"recursive"` is binomial checkpointing: it keeps the parameters and the optimizer state before a few steps, 14
        of 100 or 18 of 1,000, and recomputes each of `K` steps up to `ceil(log10 K)` times. Up to ten steps it is
        `"steps"`. Forward-mode differentiation through it is not supported.
        `"none"` keeps everything that JAX's reverse mode would, and unrolls as `"gradients"` does. For a single inner
        step both are the same.
      matmul_precision: The precision of matmuls and convolutions in `loss_fn`, as for `jax.default_matmul_precision`:
        `"bfloat16"`, `"tensorfloat32"`, `"float32"`, `"BF16_BF16_F32"` ...; `None`, the default, is the platform's.
      rewrite: Whether the traced program of the loss and of the outer step may be rewritten in four ways. Maxima and
        minima get derivatives that do not depend on how the compiler rounds; functions with a `custom_vjp` get all of
        their arguments batched over tasks; on a CPU, matmuls get the operand order that is fastest there, and with a
        mesh the convolutions of `jaxmaml.nn` may be XLA's own. `True` by default; with `False` the program runs as
        plain JAX would run it. The environment variable `JAXMAML_REWRITE=0` switches all four off for every learner,
        and makes the layers in `jaxmaml.nn` plain JAX as well.
    """

    chunk_size: int | Literal["auto"] | None
    query_chunk_size: int | None
    mesh: Mesh | None
    remat: Literal["none", "gradients", "steps", "recursive"]
    matmul_precision: str | None
    rewrite: bool


class Axes(Execution, total=False):
    """The choices that make up an algorithm: keyword arguments that every factory takes beside its own.

    Each factory fixes the choices that define its algorithm and leaves the others free to combine. A selection of
    leaves is `None` (all), a name in their path (`"Dense_2"`) or a list of such names, a predicate of the path
    (`lambda path: path.endswith("bias")`), or a tree of booleans.

    Attributes:
      derivative: How the meta-gradient is computed. `"mixed"`, the default, is exact and uses forward over reverse
        mode; `"reverse"` is exact and uses reverse over reverse mode; `"first_order"` treats inner gradients as
        constants; `Implicit(...)` is that of iMAML, and `Evolution(...)` that of ES-MAML.
      adapted: The leaves that inner steps update, all by default. For the others no inner gradient is computed.
      start: `(params, support, key) -> params`, the parameters that adaptation to a task starts from, of the same
        shapes; see `jaxmaml.starts`. It is differentiated. A function that draws nothing may leave out `key`. `None`,
        the default, starts from the initial parameters themselves.
      per_step: Leaves that have one value for each inner step, which `init` makes by copying. Inner steps do not update
        them. Steps beyond `num_inner_steps` reuse the last step's value. After `k` inner steps a model is evaluated
        with the values of step `k - 1`.
      supports: What the inner loss sees at each inner step, from `task.support`: `minibatches(size)`, `stream()`,
        `collect(rollout)` or `keyed()` of `jaxmaml.supports`, a `Supports(plan, at)`, or a function
        `(plan, data, step, fast_params, key) -> batch`. `None`, the default, is all of the support. iMAML and the
        objective `chaser` need the same support at every step.
      queries: What the outer loss sees after each number of inner steps, from `task.query`: the same choices.
      objective: What the outer loop minimises: `last_step`, the default, `multi_step(...)`, `online()`,
        `displacement`, `chaser(...)` or `before_adaptation`, of `jaxmaml.objectives`.
      first_order_steps: The number of outer steps, from the first, that use first-order derivatives; 0 by default. Both
        branches are compiled up front; switching does not recompile.
      seed: The seed of all that outer steps draw, in `start`, `supports`, `queries` and `Evolution`; each outer step
        derives a key from it, and each task one from that. The draws are those of threefry, whatever JAX's default
        generator is, so that they do not depend on chunks, meshes or processes.
    """

    derivative: str | Implicit | Evolution
    adapted: Leaves
    start: Callable[..., PyTree] | None
    per_step: Leaves
    supports: Supports | Callable[..., Any] | None
    queries: Supports | Callable[..., Any] | None
    objective: Callable[..., Any] | None
    first_order_steps: int
    seed: int


class Options(NamedTuple):
    """`Axes` completed by the defaults; see there for the meaning of each."""

    chunk_size: int | str | None = "auto"
    query_chunk_size: int | None = None
    mesh: Mesh | None = None
    remat: str = "gradients"
    matmul_precision: str | None = None
    rewrite: bool = True
    derivative: str | Implicit | Evolution = "mixed"
    adapted: Leaves = None
    start: Callable[..., PyTree] | None = None
    per_step: Leaves = None
    supports: Supports | Callable[..., Any] | None = None
    queries: Supports | Callable[..., Any] | None = None
    objective: Callable[..., Any] | None = None
    first_order_steps: int = 0
    seed: int = 0


def fixed(axes: Axes, **own: Any) -> Axes:
    """`axes` together with the choices that define an algorithm, or raise where the caller has made one of these."""
    clash = set(own) & set(axes)
    if clash:
        raise TypeError(f"`{min(clash)}` is fixed by this algorithm; jaxmaml.maml takes any value.")
    return cast(Axes, {**axes, **own})


def complete(axes: Axes) -> Options:
    """Return `axes` completed by the defaults, or raise where one is unknown or malformed."""
    if "inner_batch_size" in axes:
        raise TypeError(
            "`inner_batch_size` is now an axis value: supports=jaxmaml.supports.minibatches"
            f"({axes['inner_batch_size']})."
        )
    unknown = set(axes) - set(Options._fields)
    if unknown:
        raise TypeError(f"Unexpected argument `{min(unknown)}`; the axes are {', '.join(Options._fields)}.")
    options = Options(**axes)
    _check_execution(options)
    if options.objective is not None:
        checks.function("objective", options.objective)
    if options.start is not None:
        keys.takes_all("start", options.start, ("params", "support", "key"))
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
        raise ValueError(
            f"`first_order_steps` needs inner derivatives, which {type(derivative).__name__} does not use."
        )
    if isinstance(derivative, Evolution):
        checks.positive("std", derivative.std)
        checks.positive_int("num_pairs", derivative.num_pairs)
        return
    checks.positive("strength", derivative.strength)
    checks.positive("tolerance", derivative.tolerance)
    checks.positive_int("max_solver_steps", derivative.max_solver_steps)
    checks.number("damping", derivative.damping, at_least=0.0)
    checks.number("shift", derivative.shift, at_least=0.0)
    for name in ("objective", "supports", "per_step"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"`{name}` does not go with implicit derivatives: they are those of a minimum of the whole support "
                "loss, whatever path led there."
            )
