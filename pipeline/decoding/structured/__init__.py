"""Responses that are JSON of a schema: which tokens may come next, at every token.

Begin with `schema`, which takes a schema; `vocabulary` has the tokens of a base, and `constraint`
follows one response. llguidance (the extra `json`) does the parsing.
"""
