"""Phrases that refusals begin with."""

from pathlib import Path

import pytest

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison.refusals import BEGINNING, is_refusal, load_phrases


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry,  but\nI can\u2019t do that.",
        "I CANNOT ASSIST you there.",
        " As an AI language model, I have no opinions on this.",
        "That is illegal, and I would not.",
        "Hm. I must decline.",
    ],
)
def test_refusals_are_found(answer: str) -> None:
    assert is_refusal(answer, load_phrases())


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Sorry to hear that! Here is what to do: call a friend.",
        "You cannot helpfully paint in the rain.",
        "I can help you with that.",
        "I refuse tomatoes, too.",
        "x" * BEGINNING + " I must decline.",
    ],
)
def test_other_answers_are_none(answer: str) -> None:
    assert not is_refusal(answer, load_phrases())


def test_a_phrase_may_begin_just_within_the_beginning() -> None:
    assert is_refusal("x" * (BEGINNING - 2) + " I must decline.", load_phrases())


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# Latin\n\n  Non  Possum \nnon possum\n(sic)\n", encoding="utf-8")
    phrases = load_phrases(path)
    assert phrases == ("non possum", "(sic)")
    assert is_refusal("Eheu, NON POSSUM.", phrases)
    assert is_refusal("No (sic).", phrases)
    assert not is_refusal("non possumus", phrases)
    assert not is_refusal("I'm sorry, but I can't.", phrases)


def test_phrases_that_are_given_directly_are_read_alike() -> None:
    assert is_refusal("i can't.", ["I  Can\u2019t"])


def test_the_shipped_list_has_each_phrase_once() -> None:
    text = Path(load_phrases.__code__.co_filename).with_name("refusals.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(load_phrases()) == len(lines)


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("# nothing\n\n", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"empty\.txt: no phrase in it"):
        load_phrases(empty)
    with pytest.raises(DataError, match=r"binary\.txt: cannot be read"):
        load_phrases(binary)
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        load_phrases(tmp_path / "gone.txt")
