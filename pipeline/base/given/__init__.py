"""Bases that are given as objects, or made of a base and an adapter.

`wrap` makes a `BaseModel` of a loaded model, `borrowed` leaves that model as it was, `adapter`
finds and loads adapters with PEFT.
"""
