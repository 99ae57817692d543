"""How well a sequence model learns online, chunk by chunk, from MAML's start and from others.

`comparison` trains the starts and scores each on new streams, and `figure` draws the result. The command is
`benchmarks.step_counts --task streams`.
"""
