"""Measuring what base and head write: rewards, win rates, repetition, refusals, perplexity.

`text_measures`, `refusals`, `reward`, `perplexity` and `judge` each measure one thing of answers;
`intervals` turns values into estimates with intervals.
"""
