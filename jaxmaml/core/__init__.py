"""The mathematics of the meta-gradient, in the order in which it is called.

`learner` assembles the three functions of a `MetaLearner` and takes the outer step; `meta_loss` is the outer
objective of one task, and chooses its gradient; `meta_gradients` computes that gradient with respect to the initial
parameters and those of the inner rule, and calls `inner_loop` through an objective of `jaxmaml.objectives`;
`inner_loop` adapts to one task; `inner_gradient` is the gradient of one inner step and its derivative. Begin with
`learner` and read in this order. Each module imports only later ones of this list. The package imports the modules at
the top of `jaxmaml`, and `rules`; `learner` alone imports `execution.executor`, which wraps execution round the
functions of the others.
"""
