"""The alignment head: the network, its files, its sizes, and which bases it goes with.

`config` holds its sizes and what they are by default, `model` is the network, `storage` reads its
files, `pretrained` saves and loads it with its origin, `compatibility` compares manifests, `merge`
makes one head of several.
"""
