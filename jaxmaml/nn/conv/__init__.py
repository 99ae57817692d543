"""A convolution that stays fast under `vmap` over kernels and under derivatives.

`convolution` is the public function, with the arguments of `jax.lax.conv_general_dilated`; `spec` holds the sizes of
one convolution; `primitive` is the convolution and its two VJPs as one JAX primitive; `lowering` chooses how it is
computed: by matmuls of `im2col` patches, or by XLA's own convolution, as `cpu` arranges it. Begin with `convolution`.
The package imports the shared modules at the top of `jaxmaml`, `execution.rewriting` and `nn.example_groups`.
"""
