"""Transformations of traced programs that do not change their values beyond rounding, and primitives made for them.

`replacement` replaces equations of a traced function by other functions; `extrema` and `exact_derivatives` give
maxima and custom rules derivatives that stay correct under `vmap` and `jit`; `deferred` makes primitives whose
implementation is chosen after derivatives and batching; `cpu_implementations` chooses the fastest on a CPU; `switch`
turns all of them off. Begin with `replacement`. The package imports only `jax_internals` and itself.
"""
