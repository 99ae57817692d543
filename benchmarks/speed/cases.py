"""The meta-steps that are timed: model, shapes and step size."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

import jaxmaml
from benchmarks.speed.models import ResNet12, Transformer
from jaxmaml.nn import batch_norm


@dataclasses.dataclass(frozen=True)
class Case:
    """One outer step on tasks of random inputs.

    Attributes:
      model: Name of the model, as `benchmarks.baselines` knows it.
      num_ways, num_shots, num_queries: The sizes of a task; queries are for each class.
      num_tasks: The number of tasks in a step.
      num_inner_steps, step_size: Gradient descent on the support loss.
      remat: jaxmaml's option; the baselines have no such choice.
    """

    model: str
    num_ways: int
    num_shots: int
    num_queries: int
    num_tasks: int
    num_inner_steps: int
    step_size: float
    remat: Literal["gradients", "recursive"] = "gradients"

    def network(self, plain: bool = False, lowering: str = "auto") -> Any:
        """The flax model; `plain` with XLA's own convolution and pooling, as one would write it without jaxmaml."""
        ways, ours = self.num_ways, jaxmaml.nn.Conv4
        conv = functools.partial(jaxmaml.nn.conv_general_dilated, lowering=lowering)
        return {
            "mlp": lambda: jaxmaml.nn.MLP(),
            "mlp-128": lambda: jaxmaml.nn.MLP((128, 128, 128, 128, 1)),
            "mlp-128-tanh": lambda: jaxmaml.nn.MLP((128, 128, 128, 128, 1), activation=linen.tanh),
            "conv4-omniglot": lambda: (
                PlainConv4(ways, 64, 2) if plain else ours.omniglot(ways, conv_general_dilated=conv)
            ),
            "conv4-mini": lambda: (
                PlainConv4(ways, 32, 1) if plain else ours.mini_imagenet(ways, conv_general_dilated=conv)
            ),
            "resnet12": lambda: ResNet12(ways, conv_general_dilated=lax.conv_general_dilated if plain else conv),
            "transformer": lambda: Transformer(ways),
        }[self.model]()

    def loss_fn(self, plain: bool = False, lowering: str = "auto") -> jaxmaml.LossFn:
        apply = self.network(plain, lowering).apply
        return jaxmaml.mean_squared_error(apply) if self.regresses else jaxmaml.cross_entropy(apply)

    @property
    def regresses(self) -> bool:
        return self.model.startswith("mlp")

    def problem(self, dtype: Any = np.float32) -> tuple[Any, jaxmaml.Task]:
        """Parameters and a batch of tasks, in NumPy, from a fixed seed."""
        rng = np.random.default_rng(0)

        def batch(num_examples):
            labels = np.tile(np.arange(self.num_ways), (self.num_tasks, num_examples)).astype(np.int32)
            shape = (*labels.shape, *_SHAPES[self.model])
            if self.model == "transformer":
                return rng.integers(64, size=shape, dtype=np.int32), labels
            inputs = rng.normal(size=shape).astype(dtype)
            return inputs, rng.normal(size=shape).astype(dtype) if self.regresses else labels

        tasks = jaxmaml.Task(batch(self.num_shots), batch(self.num_queries))
        # On a CPU and at once: elsewhere each random array would be compiled by itself, for seconds.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            params = jax.jit(self.network().init)(jax.random.key(0), tasks.support[0][0])
        return jax.tree.map(lambda p: np.asarray(p, dtype), params), tasks


_SHAPES = {
    "mlp": (1,),
    "mlp-128": (1,),
    "mlp-128-tanh": (1,),
    "conv4-omniglot": (28, 28, 1),
    "conv4-mini": (84, 84, 3),
    "resnet12": (32, 32, 3),
    "transformer": (16,),
}

CASES = {
    "omniglot-5w1s-1step": Case("conv4-omniglot", 5, 1, 1, 32, 1, 0.4),
    "omniglot-5w1s-5steps": Case("conv4-omniglot", 5, 1, 1, 32, 5, 0.1),
    "omniglot-20w1s-5steps": Case("conv4-omniglot", 20, 1, 1, 16, 5, 0.1),
    "mini-imagenet-5w1s-5steps": Case("conv4-mini", 5, 1, 15, 4, 5, 0.01),
    "sinusoid-1step": Case("mlp", 1, 10, 10, 25, 1, 0.01),
    "sinusoid-5steps": Case("mlp", 1, 10, 10, 25, 5, 0.01),
    "resnet12-5w1s-1step": Case("resnet12", 5, 1, 1, 2, 1, 0.01),
    "transformer-5w5s-5steps": Case("transformer", 5, 5, 5, 16, 5, 0.01),
    "mlp-100steps": Case("mlp-128", 1, 256, 256, 4, 100, 0.01),
    "mlp-100steps-recursive": Case("mlp-128", 1, 256, 256, 4, 100, 0.01, remat="recursive"),
    "mlp-tanh-100steps": Case("mlp-128-tanh", 1, 256, 256, 4, 100, 0.01),
    "mlp-tanh-100steps-recursive": Case("mlp-128-tanh", 1, 256, 256, 4, 100, 0.01, remat="recursive"),
}
# The same with as many tasks as fill a GPU.
CARD_CASES = {
    f"{name}-{num_tasks}tasks": dataclasses.replace(CASES[name], num_tasks=num_tasks)
    for name, num_tasks in (
        ("omniglot-5w1s-1step", 1024),
        ("omniglot-5w1s-5steps", 1024),
        ("mini-imagenet-5w1s-5steps", 32),
        ("resnet12-5w1s-1step", 16),
        ("transformer-5w5s-5steps", 256),
        ("sinusoid-1step", 4096),
    )
}
ALL_CASES = {**CASES, **CARD_CASES}


class PlainConv4(linen.Module):
    """Conv4 from flax's own layers, with the parameter names of `jaxmaml.nn.Conv4`."""

    num_ways: int
    features: int
    stride: int

    @linen.compact
    def __call__(self, x):
        for index in range(4):
            x = linen.Conv(self.features, (3, 3), self.stride)(x)
            x = linen.relu(batch_norm(x, None, _Shift(name=f"BatchNorm_{index}")(x)))
            if self.stride == 1:
                x = linen.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1) if self.stride == 1 else jnp.mean(x, axis=(1, 2))
        return linen.Dense(self.num_ways)(x)


class _Shift(linen.Module):
    @linen.compact
    def __call__(self, x):
        return self.param("bias", linen.initializers.zeros, x.shape[-1:])
