"""A loopback hub, what it has, and commands that reach it."""
