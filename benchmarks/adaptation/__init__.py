"""How many gradient steps a new task needs: the problems, the algorithms and the initial parameters to compare.

`problem` says what a problem has to provide, and `sinusoid`, `omniglot` and `trained_run` are the problems;
`navigation` is reinforcement learning, with `navigation_report` for its pages; `algorithms` compares algorithms with
the recipes in `families`; `curves` draws the figures. Begin with `problem`. The command is `benchmarks.step_counts`.
"""
