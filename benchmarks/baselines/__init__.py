"""Other ways of aligning the same base on the same pairs, for comparison.

TRL and PEFT are imported inside functions: nothing else here needs them.
"""
