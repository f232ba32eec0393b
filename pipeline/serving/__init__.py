"""An OpenAI-compatible server for a head and the bases it goes with, and a page to try them on.

`options` and `run` can be imported without the packages of the `serve` extra; the rest cannot.
"""
