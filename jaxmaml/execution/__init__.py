"""How an outer step runs on a machine. Values do not change beyond rounding, except by `query_chunk_size`.

`task_axis` executes a batch of tasks at once, in chunks or over devices, by `memory_estimate`'s count of what one
task holds; `remat` and `binomial_checkpointing` bound what the inner loop keeps for its derivative; `query_chunks`
bounds the query loss; `rewriting` transforms traced programs, so that also the derivatives of maxima and custom rules
are right. Begin with `executor`, where all of them meet. The package imports only the shared modules at the top of
`jaxmaml`, never `core`, `learners` or `training`.
"""
