"""Kinds of head and what they are trained to do, by held-out accuracy on real pairs.

Begin with `__main__`; `grid` has what is compared, `runs` trains and scores one of them.
"""
