"""Regularised least squares in plain array operations."""

import jax
import jax.numpy as jnp


def ridge(rows: jax.Array, targets: jax.Array, regularization: float) -> jax.Array:
    r"""Minimise `|rows x - targets|^2 + regularization |x|^2`, by a QR decomposition of the augmented matrix.

    That is `[rows; sqrt(regularization) I]`. Gram and Schmidt's method, with each column made orthogonal twice, is as
    exact as Householder's. `jnp.linalg.qr` would do the same with LAPACK, but a compiled program of many rollouts that
    calls it can deadlock on a CPU (jaxlib 0.10.2, two cores, decompositions of 20 matrices of 2008 x 8).

    Args:
      rows: `[num_rows, num_columns]`, in float32 or float64.
      targets: `[num_rows]`.
      regularization: > 0, so that no column depends on the others.
    Returns:
      `x`, `[num_columns]`.
    References:
      Giraud et al., 2005, https://doi.org/10.1016/j.camwa.2005.08.009 (orthogonal twice is enough)
    """
    size = rows.shape[1]
    root = jnp.sqrt(jnp.asarray(regularization, rows.dtype))
    matrix = jnp.concatenate([rows, root * jnp.eye(size, dtype=rows.dtype)])

    def orthogonalise(index, basis):
        column = matrix[:, index]
        for _ in range(2):
            column = column - basis @ (basis.T @ column)
        return basis.at[:, index].set(column / jnp.linalg.norm(column))

    basis = jax.lax.fori_loop(0, size, orthogonalise, jnp.zeros_like(matrix))
    triangle = basis.T @ matrix
    right = basis[: len(rows)].T @ targets

    def substitute(step, solution):
        index = size - 1 - step
        # The entries below the diagonal are rounding errors, and meet zeros of the solution.
        return solution.at[index].set((right[index] - triangle[index] @ solution) / triangle[index, index])

    return jax.lax.fori_loop(0, size, substitute, jnp.zeros_like(right))
