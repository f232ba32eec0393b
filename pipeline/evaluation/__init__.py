"""Measuring a head on cached pairs: accuracy, margin, KL and norms by alpha.

`evaluate` does it; `pair_scores` are the figures of each pair, `statistics` their intervals,
`length_breakdown` accuracy by length.
"""
