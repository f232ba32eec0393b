"""What a judge is asked, and what its reply is taken for."""

from pathlib import Path

import pytest

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison.judge_prompt import fill, load_judge_prompt, read_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Both are fine. A is clearer.\n\nVerdict: A", "A"),
        ("verdict: b", "B"),
        ("Verdict: tie.\n\n", "tie"),
        ("**Verdict:** B", "B"),
        ("Verdict: [A]", "A"),
        ("<think>\nVerdict: B?\n</think>\nVerdict: B", "B"),
        ("", None),
        (" \n", None),
        ("A", None),
        ("The verdict: A", None),
        ("Verdict: A or B", None),
        ("Verdict: A because it is longer", None),
        ("Verdict: C", None),
        ("Verdict: neither", None),
        ("Verdict: A\nThat is my view.", None),
        ("Verdict: A\nVerdict: B", None),
        ("Verdict: A\nVerdict: A", "A"),
    ],
)
def test_a_verdict_is_the_last_line_and_one(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


def test_the_shipped_prompt_takes_the_texts_and_asks_for_what_is_read() -> None:
    template = load_judge_prompt()
    asked = fill(template, [{"role": "user", "content": "Hi?"}], " one\n", "two")
    assert "<conversation>\nUser: Hi?\n</conversation>" in asked
    assert "<answer_a>\none\n</answer_a>" in asked
    assert "<answer_b>\ntwo\n</answer_b>" in asked
    named = [line for line in template.splitlines() if line.startswith("Verdict:")]
    assert [read_verdict(line) for line in named] == ["A", "B", "tie"]


def test_texts_that_look_like_places_or_patterns_are_taken_as_they_are() -> None:
    template = "{conversation}|{answer_a}|{answer_b}|{other}"
    asked = fill(template, "a {answer_b} \\1", "{conversation}", "{{answer_a}}")
    assert asked == "User: a {answer_b} \\1|{conversation}|{{answer_a}}|{other}"


def test_a_transcript_is_shown_turn_by_turn() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: And now?\n\nAssistant:"
    asked = fill("{conversation}{answer_a}{answer_b}", prompt, "", "")
    assert asked == "User: Hi\n\nAssistant: Ho\n\nUser: And now?"


def test_a_prompt_without_a_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{conversation} {answer_b}", encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.txt: \{answer_a\} missing"):
        load_judge_prompt(path)
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        load_judge_prompt(tmp_path / "gone.txt")
