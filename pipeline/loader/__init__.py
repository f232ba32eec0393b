"""Reading a cache for training: batches, the dataset that streams them, and their order.

`dataset` reads whole blocks ahead, `sampler` is a pure function of seed, epoch and position,
`split` says which pairs are held out, `batch` is what a step is given.
"""
