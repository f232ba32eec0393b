"""Stage two: train a head from a cache alone; the base is absent.

`options` is what is asked for, `train` does it with the pairs of `data`; `trainer`, `loss`,
`optimizer` and `parallel` take a step, `checkpoint` and `resume` keep it, `best` judges its head.
"""
