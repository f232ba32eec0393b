"""Repetition, diversity and distinct-n, beside plain loops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.pipeline.comparison.text_measures import distinct_n, diversity, length, repetition

WORDS = st.lists(st.sampled_from(["a", "b", "B", "c."]), max_size=12)


def seen_before(words: list[str], n: int, seen: list[list[str]]) -> tuple[int, int]:
    """How many of the n-grams are in a list already or come again, and how many there are."""
    repeated = total = 0
    for start in range(len(words) - n + 1):
        gram = words[start : start + n]
        repeated += gram in seen
        seen.append(gram)
        total += 1
    return repeated, total


@given(WORDS, st.integers(1, 5))
def test_repetition_counts_what_came_before(words: list[str], n: int) -> None:
    repeated, total = seen_before(words, n, [])
    found = repetition("  ".join(words) + "\n", n)
    assert found == (pytest.approx(repeated / total) if total else None)


@given(WORDS)
def test_diversity_is_a_product(words: list[str]) -> None:
    expected = 1.0
    for n in (2, 3, 4):
        repeated, total = seen_before(words, n, [])
        expected *= 1 - repeated / total if total else 0
    found = diversity(" ".join(words))
    assert found == (pytest.approx(expected) if len(words) >= 4 else None)


@given(st.lists(WORDS, max_size=5), st.integers(1, 4))
def test_distinct_n_is_of_all_texts_together(texts: list[list[str]], n: int) -> None:
    seen: list[list[str]] = []
    counts = [seen_before(words, n, seen) for words in texts]
    repeated, total = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
    found = distinct_n((" ".join(words) for words in texts), n)
    assert found == (pytest.approx(1 - repeated / total) if total else None)


def test_figures_by_hand() -> None:
    text = "so it is so it is so it"  # 8 words; bigrams: 7, of which 3 distinct
    assert length(text) == 8
    assert repetition(text, 2) == pytest.approx(4 / 7)
    assert repetition(text, 3) == pytest.approx(3 / 6)
    assert repetition(text, 4) == pytest.approx(2 / 5)
    assert diversity(text) == pytest.approx(3 / 7 * 3 / 6 * 3 / 5)
    assert distinct_n(["yes no", "yes no", "yes"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b", "b c"], 2) == 1.0  # no n-gram goes from one text into the next
    assert length(" \n") == 0
