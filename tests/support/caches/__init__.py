"""Caches, stores and the pairs in them, written on the spot."""
