"""Results for people: tables, plots, one page of HTML, and what `mav inspect` shows.

`tables` and `side_by_side` are text, `plots` and `html` need the `plot` extra, `inspect` reads
caches and heads.
"""
