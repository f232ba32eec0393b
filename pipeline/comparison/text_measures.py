"""Length, repetition and diversity of answers, from their words alone.

Words are separated by white space, and keep case and punctuation, as in the papers' code. So
figures are comparable within one language, and mean little for one written without spaces. An
n-gram is n consecutive words of one answer.

Sources: rep-n and diversity from Su et al. 2022, "A Contrastive Framework for Neural Text
Generation", as Khanov et al. 2024 (ARGS) report them; distinct-n from Li et al. 2016, "A
Diversity-Promoting Objective Function for Neural Conversation Models".
"""

import math
from collections.abc import Iterable
from typing import Final

_ORDERS: Final = (2, 3, 4)
"""The n of the rep-n that diversity is made of."""


def length(text: str) -> int:
    """Return the number of words of a text."""
    return len(text.split())


def repetition(text: str, n: int) -> float | None:
    """Return rep-n: the share of a text's n-grams that occurred before.

    Returns:
        1 - distinct n-grams / n-grams, from 0 to 1; None for a text of fewer than n words.
    """
    grams = _ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def diversity(text: str) -> float | None:
    """Return the product of 1 - rep-n over n from 2 to 4.

    Returns:
        From 0 to 1; None for a text of fewer than 4 words.
    """
    rates = [repetition(text, n) for n in _ORDERS]
    known = [share for share in rates if share is not None]
    return math.prod(1 - share for share in known) if len(known) == len(_ORDERS) else None


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Return distinct-n: distinct n-grams of all texts together / n-grams.

    It falls as the number of texts grows, so compare only equal numbers of texts.

    Returns:
        From 0 to 1; None if no text has n words.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
