"""Where a cache is kept: objects in a folder or a bucket, and the lock of a run.

`open` opens a place, `base` says what every place can do, `local` and `remote` are the two kinds,
`addresses` reads what users name, `lock` keeps two runs apart.
"""
