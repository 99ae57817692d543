"""The loop over outer steps on the host, and everything that a long run needs.

`fit` is the loop; `compiled_steps` runs several outer steps in one compiled call, on tasks from `sources`: `samplers`
draws them inside the call, or they come from outside. `padding` refuses losses that padding changes, and `errors` end a
run early; `evaluation` computes held-out curves and `validation` chooses the best state by them; `checkpoints`,
`run_state` and `fingerprints` save and resume a run; `progress` and `interrupts` deal with the terminal. Begin with
`fit`. The package imports the shared modules at the top of `jaxmaml`; a learner is an argument, so that nothing of
`core` is imported.
"""
