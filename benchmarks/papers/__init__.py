"""The papers' tables: their recipes, the data, and the scores of a trained state.

Begin with `recipes`. The commands are `benchmarks.reproduce` and `benchmarks.report`.
"""
