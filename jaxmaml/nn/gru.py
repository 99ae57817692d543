"""A gated recurrent unit, a small model of sequences."""

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen import dtypes

from jaxmaml import checks


class GRU(linen.Module):
    r"""A gated recurrent unit over a sequence, and a linear map from its state to the output at every time.

    From the state `h_0 = 0`, and with `*` between vectors elementwise,

        r_t = sigmoid(x_t W_r + h_{t-1} U_r + b_r)                  the reset gate
        z_t = sigmoid(x_t W_z + h_{t-1} U_z + b_z)                  the update gate
        c_t = tanh(x_t W_c + (r_t * h_{t-1}) U_c + b_c)             the candidate
        h_t = z_t * h_{t-1} + (1 - z_t) * c_t
        y_t = h_t W_y + b_y

    Nothing at time `t` depends on later inputs. The state begins at zero in every call: what lasts from one chunk of a
    stream to the next is what the parameters have learned.

    Weights of inputs and of the output are drawn from a normal distribution, truncated, of variance one over the number
    of inputs (LeCun), recurrent weights are random orthogonal matrices, and biases are zero.

    Parameters are `input_kernel [inputs, 3 num_hidden]`, the gates in the order r, z, c; `bias [3 num_hidden]`;
    `gate_kernel [num_hidden, 2 num_hidden]`, for r and z; `candidate_kernel [num_hidden, num_hidden]`; and the dense
    layer `output`.

    Attributes:
      num_hidden: The length of the state.
      num_outputs: The length of the output at each time.

    Raises:
      ValueError: If an attribute is < 1; in use, if the inputs are not `[..., time, inputs]`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> model = jaxmaml.nn.GRU(num_hidden=8, num_outputs=1)
      >>> params = model.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> model.apply(params, jnp.ones((10, 2))).shape, model.apply(params, jnp.ones((5, 10, 2))).shape
      ((10, 1), (5, 10, 1))

    References:
      Cho et al., 2014, https://arxiv.org/abs/1406.1078 (section 2.3)
    """

    num_hidden: int
    num_outputs: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = checks.positive_int("num_hidden", self.num_hidden)
        checks.positive_int("num_outputs", self.num_outputs)
        if x.ndim < 2:
            raise ValueError(f"`inputs` of nn.GRU must be [..., time, inputs], got shape {x.shape}.")
        inputs = x.shape[-1]
        x, input_kernel, bias, gate_kernel, candidate_kernel = dtypes.promote_dtype(
            x,
            self.param("input_kernel", linen.initializers.lecun_normal(), (inputs, 3 * size)),
            self.param("bias", linen.initializers.zeros, (3 * size,)),
            self.param("gate_kernel", _orthogonal_blocks, (size, 2 * size)),
            self.param("candidate_kernel", linen.initializers.orthogonal(), (size, size)),
        )

        def step(state, driven):
            gates = linen.sigmoid(driven[..., : 2 * size] + state @ gate_kernel)
            reset, update = gates[..., :size], gates[..., size:]
            candidate = jnp.tanh(driven[..., 2 * size :] + (reset * state) @ candidate_kernel)
            state = update * state + (1 - update) * candidate
            return state, state

        # The inputs of all times at once: one large product in place of many small ones.
        driven = jnp.moveaxis(x @ input_kernel + bias.reshape(*(1,) * (x.ndim - 1), -1), -2, 0)
        _, states = jax.lax.scan(step, jnp.zeros_like(driven[0, ..., :size]), driven)
        return linen.Dense(self.num_outputs, name="output")(jnp.moveaxis(states, 0, -2))


def _orthogonal_blocks(key, shape):
    """An orthogonal matrix for each gate, side by side."""
    size, width = shape
    return jnp.concatenate(
        [linen.initializers.orthogonal()(part, (size, size)) for part in jax.random.split(key, width // size)], axis=1
    )
