"""What most terms share: one layer, and a squared error."""

import jax.numpy as jnp


def hidden_of(params, batch):
    return batch["x"] @ params["w"] + params["b"][None]


def fit(prediction, batch):
    return jnp.mean((prediction - batch["y"]) ** 2)
