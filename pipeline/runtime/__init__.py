"""What every room may use of the machine: devices and types, processes, progress, files, the hub.

Nothing here knows of caches, bases or heads. `hub` fetches and says what the hub refuses;
`known_places` remembers where a base was last seen; `durable_files` writes files whole or not at
all.
"""
