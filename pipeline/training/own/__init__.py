"""Training in one's own way: the cache in a loop of one's own, own losses, calls at each event.

`loop` has the loader and the scorer of a loop, `callbacks` what a training calls, `target_kl` finds
the alpha that a head is recommended with.
"""
