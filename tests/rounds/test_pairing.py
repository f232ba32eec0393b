"""Which answers become pairs, against every pair that the rule's words allow."""

import random
from itertools import permutations

import pytest

from mav.pipeline.rounds.options import Rule
from mav.pipeline.rounds.pairing import pairs_of


@pytest.mark.parametrize(
    ("scores", "rule", "margin", "want", "cause"),
    [
        ([], "extremes", 0.0, [], "one_answer"),
        ([1.0], "all", 0.0, [], "one_answer"),
        ([2.0, 2.0, 2.0], "extremes", 0.0, [], "tie"),
        ([2.0, 2.0], "all", 0.0, [], "tie"),
        ([1.0, 3.0, 2.0], "extremes", 0.0, [(1, 0)], ""),
        ([1.0, 3.0, 2.0], "extremes", 2.0, [(1, 0)], ""),
        ([1.0, 3.0, 2.0], "extremes", 2.5, [], "small_margin"),
        ([3.0, 1.0, 3.0, 1.0], "extremes", 0.0, [(0, 1)], ""),
        ([1.0, 3.0, 2.0], "all", 0.0, [(1, 0), (2, 0), (1, 2)], ""),
        ([1.0, 3.0, 2.0], "all", 1.5, [(1, 0)], ""),
        ([1.0, 1.0, 2.0], "all", 0.0, [(2, 0), (2, 1)], ""),
        ([1.0, 1.5], "all", 1.0, [], "small_margin"),
    ],
)
def test_pairs(
    scores: list[float], rule: Rule, margin: float, want: list[tuple[int, int]], cause: str
) -> None:
    found, why = pairs_of(scores, rule, margin)
    assert [(pair.chosen, pair.rejected) for pair in found] == want
    assert why == cause


def test_all_are_those_that_differ_enough() -> None:
    chance = random.Random(4)
    for _ in range(200):
        scores = [chance.randint(0, 4) / 2 for _ in range(chance.randint(2, 6))]
        margin = chance.choice([0.0, 0.5, 1.0])
        found, _ = pairs_of(scores, "all", margin)
        allowed = {
            (best, worst)
            for best, worst in permutations(range(len(scores)), 2)
            if scores[best] > scores[worst] and scores[best] - scores[worst] >= margin
        }
        assert {(pair.chosen, pair.rejected) for pair in found} == allowed
        assert len(found) == len(allowed)
        one, _ = pairs_of(scores, "extremes", margin)
        assert len(one) <= 1
        for pair in one:
            assert scores[pair.chosen] == max(scores)
            assert scores[pair.rejected] == min(scores)
            assert (pair.chosen, pair.rejected) in allowed
