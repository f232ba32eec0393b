"""Reports: tables, plots, an HTML page, and `mav inspect`.

`tables` and `side_by_side` are text, `plots` and `html` need the `plot` extra, `inspect` reads
caches and heads.
"""
