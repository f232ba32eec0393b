"""Measuring generated answers: rewards, win rates, repetition, refusals, perplexity.

Begin with `compare` in `run`: `prompts` reads prompts, `generation` answers them at each strength,
`answers` reads other systems' answers, and `summary` combines the measures. `text_measures`,
`refusals`, `reward`, `perplexity` and `judge` each measure one property of answers; `intervals`
computes estimates with confidence intervals.
"""
