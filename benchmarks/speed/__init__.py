"""How long an outer step takes: cases, implementations of them, processes that time them, and tables.

`cases` says what is computed and `implementations` by whom; `worker` is the process of one implementation and `workers`
starts them; `flops`, `programs` and `traffic` count operations and bytes; `tables` formats the results. Begin with
`cases`. The commands are `benchmarks.meta_step`, `benchmarks.convolutions` and `benchmarks.memory`.
"""
