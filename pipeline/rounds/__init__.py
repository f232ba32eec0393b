"""A round of your own pairs: samples of base and head, scores, preference pairs.

Begin with `sample`, which `mav sample` calls, then `pairs` for `mav pairs`: `samples` and `scores`
read what it takes, `pairing` says which answers become a pair. Every room above `preferences` reads
the pairs as any others.
"""
