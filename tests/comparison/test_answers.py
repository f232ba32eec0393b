"""Answers of other systems, read from files and matched to the prompts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison.answers import ReadAnswers, read_answers
from mav.pipeline.comparison.questions import Question, key_of
from mav.pipeline.comparison.records import Answer, AnswerKey, answer_of
from tests.support.steering.comparisons import prompts_of

PROMPTS = prompts_of("Hi", Question(prompt="Name a tree.", follow_ups=("Another.",)))


def read(path: Path, rows: list[Any], **changes: Any) -> ReadAnswers:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_answers("it", path, dataclasses.replace(PROMPTS, **changes))


def test_lines_of_prompt_and_response(tmp_path: Path) -> None:
    found = read(
        tmp_path / "a.jsonl",
        [
            {"prompt": "Name a tree.", "response": "Elm."},
            {"messages": [{"role": "user", "content": "Hi"}], "response": "Ho", "new_tokens": 3},
            {"prompt": "\n\nHuman: Hi\n\nAssistant:", "response": "Hello", "finish": "length"},
            {"prompt": "Name a tree.", "response": "Oak.", "turn": 1},
        ],
    )
    assert [(*one.key, one.response) for one in found.answers] == [
        (0, 0, 0, "Ho"),
        (0, 1, 0, "Hello"),
        (1, 0, 0, "Elm."),
        (1, 0, 1, "Oak."),
    ]
    assert [one.new_tokens for one in found.answers] == [3, None, None, None]
    assert [one.finish for one in found.answers] == [None, "length", None, None]


def test_alpaca_evals_outputs(tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "output": "Ho", "generator": "them", "dataset": "koala"}]
    (answer,) = read(tmp_path / "a.json", rows).answers
    assert (answer.key, answer.response) == (AnswerKey(0), "Ho")


def test_an_answer_that_could_not_be_given_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "error": "too long"}, {"prompt": "Name a tree.", "response": ""}]
    first, second = read(tmp_path / "a.jsonl", rows).answers
    assert (first.error, first.response) == ("too long", "")
    assert (second.error, second.response) == (None, "")


def test_answers_to_other_prompts_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": "x"} for text in ("Hi", "Why?", "When?")]
    with pytest.raises(
        DataError,
        match=r"a\.jsonl: 2 of its 3 answers are to other prompts, such as 'Why\?'; expected "
        r"answers to the prompts of here",
    ):
        read(tmp_path / "a.jsonl", rows)


def test_answers_to_a_turn_that_is_not_asked_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response": "x", "turn": turn} for turn in (0, 1)]
    with pytest.raises(DataError, match="1 of its 2 answers are to other prompts, such as 'Hi'"):
        read(tmp_path / "a.jsonl", rows)


def test_answers_beyond_a_limit_are_not_used(tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": "x"} for text in ("Hi", "Why?")]
    found = read(tmp_path / "a.jsonl", rows, beyond=frozenset({key_of("Why?")}))
    assert (len(found.answers), found.beyond) == (1, 1)
    with pytest.raises(DataError, match="none of its 1 answers belongs to one of the 2 prompts"):
        read(tmp_path / "a.jsonl", rows[1:], beyond=frozenset({key_of("Why?")}))


def said(**more: object) -> dict[str, object]:
    """An answer with something more about it."""
    return {"prompt": "Hi", "response": "x", **more}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no answer in it"),
        ([3], "line 1: got 3, expected an object"),
        ([{"prompt": "Hi"}], "line 1: got .'prompt'., expected 'prompt' and 'response'"),
        ([{"prompt": "Hi", "response": 3}], "expected 'prompt' and 'response'"),
        ([{"prompt": [], "response": "x"}], "line 1: messages: got none"),
        ([{"prompt": 3, "response": "x"}], "line 1: prompt: got int, expected a text"),
        ([said(turn="b")], "line 1: turn: got .b., expected a whole number, at least 0"),
        ([said(turn=-1)], "line 1: turn: got -1, expected a whole number"),
        ([said(turn=0.5)], "turn: got 0.5, expected a whole number"),
        ([said(turn=True)], "turn: got true, expected a whole number"),
        ([said(turn=None)], "turn: got null, expected a whole number"),
        ([said(new_tokens=-1)], "new_tokens: got -1, expected a whole number"),
        ([said(new_tokens=10**400)], "new_tokens: got 1000*…, expected a whole number"),
        ([said(kl="inf")], "kl: got .inf., expected a number"),
        ([said(kl=False)], "kl: got false, expected a number"),
        ([said(kl=10**400)], "kl: got 1000*…, which is too large"),
        ([said(finish=3)], "finish: got 3, expected a text"),
    ],
)
def test_what_is_no_answer_is_told(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(tmp_path / "a.jsonl", rows)


@pytest.mark.parametrize("line", ["{", '{"prompt": "Hi", "response": "x", "kl": 1e999}', "NaN"])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(said())}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: cannot be read"):
        read_answers("it", path, PROMPTS)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        read_answers("it", tmp_path / "gone.jsonl", PROMPTS)


@given(
    st.builds(
        Answer,
        key=st.builds(AnswerKey, *[st.integers(0, 9)] * 3),
        response=st.text(st.characters(exclude_categories=["Cs"])),
        new_tokens=st.none() | st.integers(0, 500),
        finish=st.none() | st.sampled_from(["stop", "length"]),
        kl=st.none() | st.floats(0, 1e3),
        base_logprob=st.none() | st.floats(-1e4, 0),
        seconds=st.none() | st.floats(0, 100),
    )
)
def test_a_line_says_all_of_an_answer(answer: Answer) -> None:
    assert answer_of(json.loads(json.dumps(answer.to_json("Hi")))) == answer
    failed = dataclasses.replace(answer, response="", error="it broke")
    assert answer_of(json.loads(json.dumps(failed.to_json("Hi")))) == failed
