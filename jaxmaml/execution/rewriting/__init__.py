"""Transformations of traced programs, which leave their values as they are.

`programs` replaces equations of a traced function by other functions; `extrema` and `exact_derivatives` give maxima
and custom rules derivatives that neither `vmap` nor compilation changes; `deferred` chooses the implementation of an
operation after derivatives and batching; `matmul_order` puts matrix products into the operand order that a CPU is
fast at. Begin with `programs`. The package imports only `jax_internals` and itself.
"""
