"""The benchmarked models in PyTorch, as functions of a flat dictionary of parameters.

Names are flax's, joined by "/" (which, unlike ".", a module's attribute may contain): `Conv_0/kernel`. Kernels are in
torch's own layout, OIHW or [out, in], and images NCHW, so that nothing is transposed while the clock runs.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxmaml

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Params = dict[str, torch.Tensor]


def to_torch(model: str, params: dict) -> Params:
    """Convert flax's parameters."""
    flat = flatten_dict(params["params"], sep="/")
    return {name: tensor(_transposed(name, np.asarray(value), (3, 2, 0, 1))) for name, value in flat.items()}


def to_flax(model: str, grads: Params) -> dict:
    """Convert back what has the parameters' shapes, to numpy."""
    flat = {name: _transposed(name, g.detach().cpu().numpy(), (2, 3, 1, 0)) for name, g in grads.items()}
    return {"params": unflatten_dict(flat, sep="/")}


def to_torch_tasks(model: str, tasks: jaxmaml.Task, channels_last: bool = False) -> jaxmaml.Task:
    """Convert a batch of tasks: images to NCHW, optionally with channels last in memory, and integers to int64."""

    def convert(array):
        array = np.asarray(array)
        if np.issubdtype(array.dtype, np.integer):
            return tensor(array.astype(np.int64))
        if array.ndim != 5:
            return tensor(array)
        images = tensor(array).movedim(-1, -3)
        return images if channels_last else images.contiguous()

    return jaxmaml.Task(*(jaxmaml.Batch(*map(convert, batch)) for batch in tasks))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(array), device=DEVICE)


def loss(model: str, params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the regressor, mean cross-entropy of the classifiers."""
    output = apply(model, params, x)
    return F.mse_loss(output, y) if model.startswith("mlp") else F.cross_entropy(output, y)


def apply(model: str, params: Params, x: torch.Tensor) -> torch.Tensor:
    """Apply a model, whose sizes are those of `params` and `x`."""
    return MODELS[model](params, x)


def mlp(params: Params, x: torch.Tensor, activation: Callable = F.relu) -> torch.Tensor:
    depth = len(params) // 2
    for layer in range(depth - 1):
        x = activation(dense(params, f"Dense_{layer}", x))
    return dense(params, f"Dense_{depth - 1}", x)


def conv4_omniglot(params: Params, x: torch.Tensor) -> torch.Tensor:
    for layer in range(4):
        x = F.relu(batch_norm(params, f"BatchNorm_{layer}", conv(params, f"Conv_{layer}", x, stride=2)))
    return dense(params, "Dense_0", x.mean((2, 3)))


def conv4_mini(params: Params, x: torch.Tensor) -> torch.Tensor:
    for layer in range(4):
        x = F.relu(batch_norm(params, f"BatchNorm_{layer}", conv(params, f"Conv_{layer}", x)))
        x = F.max_pool2d(x, 2)
    return dense(params, "Dense_0", x.permute(0, 2, 3, 1).flatten(1))


def resnet12(params: Params, x: torch.Tensor) -> torch.Tensor:
    def normalised_conv(block, layer, x):
        return batch_norm(params, f"{block}/BatchNorm_{layer}", conv(params, f"{block}/Conv_{layer}", x))

    for block in _numbered(params, "ResidualBlock"):
        y = F.leaky_relu(normalised_conv(block, 0, x), 0.1)
        y = F.leaky_relu(normalised_conv(block, 1, y), 0.1)
        y = normalised_conv(block, 2, y) + normalised_conv(block, 3, x)
        x = F.max_pool2d(F.leaky_relu(y, 0.1), 2)
    return dense(params, "Dense_0", x.mean((2, 3)))


def transformer(params: Params, tokens: torch.Tensor, heads: int = 4) -> torch.Tensor:
    x = F.embedding(tokens, params["Embed_0/embedding"]) + params["positions"]
    for block in _numbered(params, "EncoderBlock"):
        projected = dense(params, f"{block}/Dense_0", layer_norm(params, f"{block}/LayerNorm_0", x))
        # [N, length, 3 * width] to three of [N, heads, length, width / heads]. torch's fused attention has no second
        # derivative.
        query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + dense(params, f"{block}/Dense_1", attended)
        hidden = dense(params, f"{block}/Dense_2", layer_norm(params, f"{block}/LayerNorm_1", x))
        x = x + dense(params, f"{block}/Dense_3", F.gelu(hidden, approximate="tanh"))
    return dense(params, "Dense_0", layer_norm(params, "LayerNorm_0", x).mean(1))


MODELS = {
    "mlp": mlp,
    "mlp-128": mlp,
    "mlp-128-tanh": functools.partial(mlp, activation=torch.tanh),
    "conv4-omniglot": conv4_omniglot,
    "conv4-mini": conv4_mini,
    "resnet12": resnet12,
    "transformer": transformer,
}


def dense(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, params[f"{name}/kernel"], params[f"{name}/bias"])


def conv(params: Params, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Convolve with flax's `SAME` padding, which puts the odd row and column at the end."""
    kernel, bias = params[f"{name}/kernel"], params.get(f"{name}/bias")
    total = [max((k - 1) - (n - 1) % stride, 0) for n, k in zip(x.shape[-2:], kernel.shape[-2:], strict=True)]
    (top, left), odd = (t // 2 for t in total), [t % 2 for t in total]
    if any(odd):
        x = F.pad(x, (left, left + odd[1], top, top + odd[0]))
        top = left = 0
    return F.conv2d(x, kernel, bias, stride, (top, left))


def batch_norm(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    """Normalise by batch statistics.

    Scale and shift stay outside of torch's function: with a scale inside, its second derivative under `vmap` is wrong
    (torch 2.13), and with a shift alone it does not exist outside of `vmap`.
    """
    normalised = F.batch_norm(x, None, None, training=True, eps=1e-3)
    scale, bias = params.get(f"{name}/scale"), params[f"{name}/bias"][:, None, None]
    return normalised + bias if scale is None else torch.addcmul(bias, normalised, scale[:, None, None])


def layer_norm(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    """Normalise over the last axis, with scale and shift outside as in `batch_norm`."""
    normalised = F.layer_norm(x, x.shape[-1:], eps=1e-5)
    return torch.addcmul(params[f"{name}/bias"], normalised, params[f"{name}/scale"])


def _numbered(params: Params, module: str) -> list[str]:
    count = len({name.partition("/")[0] for name in params if name.startswith(f"{module}_")})
    return [f"{module}_{index}" for index in range(count)]


def _transposed(name: str, array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Between HWIO and OIHW by `order`, and between [in, out] and [out, in]."""
    if not name.endswith("kernel"):
        return array
    return array.transpose(order) if array.ndim == 4 else array.T
