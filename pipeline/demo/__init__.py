"""`mav demo`: the whole pipeline on shipped pairs, and switching of bases.

`run` does what its printed commands would; `sample` holds the pairs.
"""
