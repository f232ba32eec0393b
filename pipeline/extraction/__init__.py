"""Stage one: run the base over preference pairs once and write the cache.

`options` is what is asked for, `extract` does it, `dry_run` only says what it would take; `prepare`
and `job` are what both begin with; `packing` and `block_runner` are the inner loop, `model_checks`
what is compared beforehand.
"""
