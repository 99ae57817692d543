"""How many steps a new image needs, as a neural field, from MAML's start and from others.

`starts` trains what is compared, `fine_tuning` fits new images from each start by the optimizer that is best for it,
`figure` draws the result, and `comparison` puts them together. Begin with `comparison`. The command is
`benchmarks.step_counts --task fields`.
"""
