"""Object stores that hold caches, in a folder or a bucket, and the lock of a run.

`open` opens a store, `base` has the interface, `local` and `remote` implement it, `addresses`
parses the locations that users name, and `lock` keeps two runs from writing to one cache.
"""
