"""The alignment head: the network, its files, its sizes, and which bases it goes with.

`model` is the network, `storage` reads and writes it, `compatibility` compares manifests,
`sizes` follows the base, `movement` detects a head that hardly moves its base.
"""
