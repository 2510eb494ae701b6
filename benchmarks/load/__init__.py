"""A load benchmark that can be believed: who costs what per chunk, per request and per stream.

`workloads` say what is asked, `wire` what is right; `model_server` answers, `load_generator` asks
and measures; `subjects` stand in between, on `environments` of their own; `runner` gives them
their turns; `figures`, `tables`, `plot` and `results_page` tell what came of it.
"""
