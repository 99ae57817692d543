"""Make torch_gradients.npz: meta-gradients of a small problem, computed by PyTorch in float64.

    pip install 'jaxmaml[peers]'
    python tests/reference/make_torch_gradients.py

The gradients come from torch.func (`grad` of the inner loss nested in `vmap` over tasks), with the inner
optimizers written out here. They are compared with those of the package `higher` first, which differentiates
SGD, momentum and Adam as a library; its Adam has no `eps_root` and puts `eps` elsewhere, so Adam is compared with
both zero and stored with both.
"""

import itertools
import pathlib

import higher
import numpy as np
import torch

torch.set_default_dtype(torch.float64)
WIDTHS = (2, 7, 6, 1)
NUM_TASKS, NUM_EXAMPLES = 4, 5
RATE = {"sgd": 0.1, "momentum": 0.05, "adam": 0.02}
MOMENTUM, B1, B2, EPS, EPS_ROOT = 0.9, 0.9, 0.999, 1e-8, 1e-8


def make_problem():
    rng = np.random.default_rng(0)
    params = []
    for width_in, width_out in itertools.pairwise(WIDTHS):
        params += [rng.normal(size=(width_in, width_out)) / np.sqrt(width_in), 0.1 * rng.normal(size=width_out)]
    x = rng.normal(size=(2, NUM_TASKS, NUM_EXAMPLES, WIDTHS[0]))
    slope = rng.normal(size=(NUM_TASKS, 1, WIDTHS[0]))
    y = np.sin((x * slope).sum(-1, keepdims=True)) + 0.5 * slope[..., :1]
    return params, x, y


def loss_fn(params, x, y):
    for index in range(0, len(params), 2):
        x = x @ params[index] + params[index + 1]
        x = torch.tanh(x) if index < len(params) - 2 else x
    return ((x - y) ** 2).mean()


def inner_update(optimizer, grads, slots, step, eps, eps_root):
    """One step of the optimizer: the change of each parameter and the new slots."""
    rate = RATE[optimizer]
    if optimizer == "sgd":
        return [-rate * g for g in grads], slots
    first, second = slots
    if optimizer == "momentum":
        first = [g + MOMENTUM * m for g, m in zip(grads, first, strict=True)]
        return [-rate * m for m in first], (first, second)
    first = [B1 * m + (1 - B1) * g for g, m in zip(grads, first, strict=True)]
    second = [B2 * v + (1 - B2) * g**2 for g, v in zip(grads, second, strict=True)]
    correct_1, correct_2 = 1 - B1 ** (step + 1), 1 - B2 ** (step + 1)
    updates = [
        -rate * (m / correct_1) / (torch.sqrt(v / correct_2 + eps_root) + eps)
        for m, v in zip(first, second, strict=True)
    ]
    return updates, (first, second)


def with_torch_func(optimizer, num_steps, params, x, y, eps, eps_root):
    def query_loss(params, x_support, y_support, x_query, y_query):
        slots = ([torch.zeros_like(p) for p in params],) * 2
        for step in range(num_steps):
            grads = torch.func.grad(loss_fn)(params, x_support, y_support)
            updates, slots = inner_update(optimizer, grads, slots, step, eps, eps_root)
            params = [p + u for p, u in zip(params, updates, strict=True)]
        return loss_fn(params, x_query, y_query)

    def meta_loss(params):
        return torch.func.vmap(query_loss, in_dims=(None, 0, 0, 0, 0))(params, x[0], y[0], x[1], y[1]).mean()

    grads, value = torch.func.grad_and_value(meta_loss)(params)
    return value.item(), torch.cat([g.reshape(-1) for g in grads]).numpy()


class Net(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(p.clone()) for p in params])

    def forward(self, x, y):
        return loss_fn(list(self.weights), x, y)


def with_higher(optimizer, num_steps, params, x, y):
    net = Net(params)
    inner = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), RATE["sgd"]),
        "momentum": lambda: torch.optim.SGD(net.parameters(), RATE["momentum"], momentum=MOMENTUM),
        "adam": lambda: torch.optim.Adam(net.parameters(), RATE["adam"], (B1, B2), eps=0.0),
    }[optimizer]()
    total = [torch.zeros_like(p) for p in net.parameters()]
    for task in range(NUM_TASKS):
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast_net, fast_inner):
            for _ in range(num_steps):
                fast_inner.step(fast_net(x[0, task], y[0, task]))
            grads = torch.autograd.grad(fast_net(x[1, task], y[1, task]), list(net.parameters()))
        total = [t + g / NUM_TASKS for t, g in zip(total, grads, strict=True)]
    return torch.cat([t.reshape(-1) for t in total]).numpy()


def main():
    params, x, y = make_problem()
    stored = {f"param_{index}": p for index, p in enumerate(params)} | {"x": x, "y": y}
    params = [torch.tensor(p) for p in params]
    x, y = torch.tensor(x), torch.tensor(y)
    for optimizer in RATE:
        for num_steps in range(1, 6):
            _, plain = with_torch_func(optimizer, num_steps, params, x, y, eps=0.0, eps_root=0.0)
            other = with_higher(optimizer, num_steps, params, x, y)
            error = np.abs(plain - other).max() / np.abs(other).max()
            print(f"{optimizer:9s} {num_steps} steps: torch.func against higher {error:.1e}")
            assert error < 1e-9, (optimizer, num_steps, error)
            value, grads = with_torch_func(optimizer, num_steps, params, x, y, eps=EPS, eps_root=EPS_ROOT)
            stored[f"{optimizer}_{num_steps}_value"] = np.array(value)
            stored[f"{optimizer}_{num_steps}_grad"] = grads
    stored["torch_version"] = np.array(torch.__version__)
    np.savez_compressed(pathlib.Path(__file__).with_name("torch_gradients.npz"), **stored)


if __name__ == "__main__":
    main()
