"""Measuring a head on cached pairs: accuracy, margin, KL and norms by alpha.

`evaluate` does it; `pair_scores` are the figures of each pair, `confidence` their intervals,
`length_breakdown` gives accuracy by length.
"""
