"""Which pairs are kept out of training."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mav.cache_schema import CacheReader
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.preferences.transcripts import split_transcript
from mav.pipeline.runtime.choices import Split
from tests.support.models.tiny import rows

FRACTIONS = st.floats(0, 1)
IDS = st.lists(st.integers(0, 2**64 - 1), max_size=30).map(lambda ids: np.array(ids, np.uint64))


def prompt_id(prompt: str, chosen: str = "a", rejected: str = "b") -> int:
    pair = PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, source_row=0)
    return pair.prompt_id


def chosen_of(ids: NDArray[np.uint64], split: Split, fraction: float) -> NDArray[np.bool_]:
    return in_subset(ids, PairSubset(split=split, fraction=fraction))


@given(IDS, FRACTIONS)
def test_training_and_held_out_are_a_partition(ids: NDArray[np.uint64], fraction: float) -> None:
    training = chosen_of(ids, "training", fraction)
    held_out = chosen_of(ids, "held-out", fraction)
    assert (training ^ held_out).all()
    assert chosen_of(ids, "all", fraction).tolist() == [True] * len(ids)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.5, 0.9])
def test_the_share_is_near_the_fraction(fraction: float) -> None:
    ids = np.array([prompt_id(f"prompt {number}") for number in range(5000)], np.uint64)
    share = chosen_of(ids, "held-out", fraction).mean()
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(ids))


def test_all_answers_to_a_prompt_fall_on_one_side() -> None:
    for number in range(50):
        ids = {prompt_id(f"prompt {number}", f"good {n}", f"bad {n}") for n in range(5)}
        assert len(ids) == 1


@given(IDS, FRACTIONS)
def test_a_pair_is_judged_alone(ids: NDArray[np.uint64], fraction: float) -> None:
    order = np.random.default_rng(len(ids)).permutation(len(ids))
    held_out = chosen_of(ids, "held-out", fraction)
    assert chosen_of(ids[order], "held-out", fraction).tolist() == held_out[order].tolist()
    alone = [chosen_of(ids[place : place + 1], "held-out", fraction)[0] for place in order]
    assert alone == held_out[order].tolist()


def test_a_cache_holds_out_the_prompts_its_texts_say(tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    subset = PairSubset(split="held-out", fraction=0.3)
    expected = set()
    for number, row in enumerate(rows(40)):
        (prompt, chosen), (_, rejected) = (
            split_transcript(row[key]) or ("", "") for key in ("chosen", "rejected")
        )
        pair = PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, source_row=number)
        if pair.prompt_id >> 32 < 0.3 * 2**32:
            expected.add(pair.pair_id)
    assert set(reader.pair_id[in_subset(reader.prompt_id, subset)].tolist()) == expected
    assert 0 < len(expected) < 40


@given(IDS)
def test_fraction_zero_holds_out_nothing_and_one_everything(ids: NDArray[np.uint64]) -> None:
    ends = np.append(ids, np.array([0, 2**64 - 1], np.uint64))
    assert not chosen_of(ends, "held-out", 0.0).any()
    assert chosen_of(ends, "held-out", 1.0).all()


@given(IDS, FRACTIONS, FRACTIONS)
def test_what_is_held_out_stays_so_as_the_fraction_grows(
    ids: NDArray[np.uint64], one: float, other: float
) -> None:
    fewer = chosen_of(ids, "held-out", min(one, other))
    more = chosen_of(ids, "held-out", max(one, other))
    assert (more | ~fewer).all()
