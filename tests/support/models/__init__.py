"""Tiny models, tokenizers and files of every kind of base."""
