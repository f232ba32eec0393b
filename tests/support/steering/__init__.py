"""Heads with random weights, and what plain passes say of bases under them."""
