"""The shipped pairs are what the README says of them."""

import json

from mav.pipeline.demo.run import _sample
from mav.pipeline.preferences.pairs import PreferencePair, to_pair
from mav.pipeline.preferences.reader import ReadCounts
from mav.pipeline.preferences.rows import read_responses
from mav.pipeline.preferences.transcripts import HUMAN


def pairs(part: str) -> list[PreferencePair]:
    found = [
        to_pair(*read_responses(json.loads(line), part), n) for n, line in enumerate(_sample(part))
    ]
    assert not [cause for cause in found if isinstance(cause, str)]
    return [pair for pair in found if isinstance(pair, PreferencePair)]


def test_enough_pairs_all_of_them_usable() -> None:
    assert len(pairs("train")) >= 200
    assert len(pairs("heldout")) >= 60
    assert ReadCounts().rows == 0


def test_held_out_questions_are_not_trained_on() -> None:
    def questions(part: str) -> set[str]:
        return {pair.prompt.rsplit(HUMAN, 1)[1].strip().lower() for pair in pairs(part)}

    assert len(questions("train") & questions("heldout")) == 0
    assert len({pair.pair_id for pair in pairs("train")}) == len(pairs("train"))


def test_length_tells_nothing_of_preference() -> None:
    for part in ("train", "heldout"):
        longer = [len(pair.rejected.split()) > len(pair.chosen.split()) for pair in pairs(part)]
        assert 0.4 < sum(longer) / len(longer) < 0.6
