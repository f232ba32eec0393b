"""Measuring what base and head write: rewards, win rates, repetition, refusals, perplexity.

`compare` in `run` is the whole of it: `prompts` reads what is asked, `generation` answers it at
each strength, `answers` reads what other systems answered, and `summary` puts the measures side by
side. `text_measures`, `refusals`, `reward`, `perplexity` and `judge` each measure one thing of
answers; `intervals` turns values into estimates with intervals.
"""
