"""Machine-level helpers for every room: devices and types, processes, progress, files, the hub.

Nothing here depends on caches, bases or heads. `hub` downloads and `hub_errors` explains failures;
`known_places` remembers where a base was last seen; `durable_files` writes files atomically.
"""
