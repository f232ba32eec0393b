"""Which scored answers become preference pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from mav.pipeline.rounds.options import Rule


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """Two answers to a prompt.

    Attributes:
        chosen: Number of the better one.
        rejected: Number of the other.
    """

    chosen: int
    rejected: int


def pairs_of(scores: Sequence[float], rule: Rule, margin: float) -> tuple[list[ScoredPair], str]:
    """Return the pairs of a prompt's answers; of none, the cause.

    `extremes` gives at most one pair, the best answer and the worst; of equal ones the first. `all`
    gives every two answers, in their order. Answers with equal scores never are a pair, and others
    only if their scores differ by the margin at least.

    Args:
        scores: Of the different answers to one prompt, finite.
        rule: Which answers are paired.
        margin: Least difference of two scores.

    Returns:
        The pairs, and if there are none `one_answer`, `tie` or `small_margin`, else nothing.
    """
    if len(scores) < 2:
        return [], "one_answer"
    places = range(len(scores))
    if rule == "extremes":
        couples = [(max(places, key=scores.__getitem__), min(places, key=scores.__getitem__))]
    else:
        couples = [
            (first, second) if scores[first] > scores[second] else (second, first)
            for first, second in combinations(places, 2)
        ]
    if max(scores) == min(scores):
        return [], "tie"
    kept = [
        ScoredPair(chosen=best, rejected=worst)
        for best, worst in couples
        if scores[best] > scores[worst] and scores[best] - scores[worst] >= margin
    ]
    return kept, "" if kept else "small_margin"
