"""Stage two: train a head from a cache alone; the base is absent.

`options` is what is asked for, `train` does it; `trainer`, `loss`, `optimizer` and `parallel` take
a step, `checkpoint` and `resume` keep it.
"""
