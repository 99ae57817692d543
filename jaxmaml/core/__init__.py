"""The mathematics of the meta-gradient, in the order in which it is called.

`learner` assembles the three functions of a `MetaLearner` and takes the outer step; `meta_gradients` differentiates a
batch of tasks by the initial parameters; `inner_loop` adapts to one task; `inner_gradient` is the gradient of one
inner step and its derivative. Begin with `learner` and read in this order. Each module imports only later ones of
this list. The package imports the shared modules and the public namespaces at the top of `jaxmaml`, and `rules`;
`learner` alone imports `execution.executor`, which wraps execution round the functions of the others.
"""
