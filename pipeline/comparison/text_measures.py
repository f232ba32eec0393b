"""Length, repetition and diversity of answers, from their words alone.

Words are what white space separates, case and punctuation kept, as in the code of the papers; so
figures compare texts of one language, and say little of one that is written without spaces. An
n-gram is n words of one answer in a row.

Sources: rep-n and diversity from Su et al. 2022, "A Contrastive Framework for Neural Text
Generation", as Khanov et al. 2024 (ARGS) report them; distinct-n from Li et al. 2016, "A
Diversity-Promoting Objective Function for Neural Conversation Models".
"""

import math
from collections.abc import Iterable
from typing import Final

_ORDERS: Final = (2, 3, 4)
"""The n of rep-n whose complements make the diversity."""


def length(text: str) -> int:
    """Return the number of words of a text."""
    return len(text.split())


def repetition(text: str, n: int) -> float | None:
    """Return rep-n: the share of a text's n-grams that repeat one before them.

    Returns:
        1 - distinct n-grams / n-grams, from 0 to 1; None for a text of fewer than n words, which
        has no n-gram to repeat.
    """
    grams = _ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def diversity(text: str) -> float | None:
    """Return the product of 1 - rep-n over n from 2 to 4.

    Returns:
        From 0 to 1; None for a text of fewer than 4 words.
    """
    found = [repetition(text, n) for n in _ORDERS]
    known = [share for share in found if share is not None]
    return math.prod(1 - share for share in known) if len(known) == len(_ORDERS) else None


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Return distinct-n: distinct n-grams of all texts together / n-grams.

    It falls as texts grow in number, so only numbers of equally many texts compare.

    Returns:
        From 0 to 1; None where no text has n words.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
