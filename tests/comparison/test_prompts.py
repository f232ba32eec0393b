"""Prompts of a comparison, in every form they come in."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.comparison.prompts import read_questions
from mav.pipeline.comparison.questions import Question, key_of
from tests.support.models.tiny import rows, write_rows


def written(path: Path, value: Any) -> str:
    """Write JSON lines or, with the ending `.json`, a list."""
    if path.suffix == ".json":
        path.write_text(json.dumps(value), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in value), encoding="utf-8")
    return str(path)


def test_pairs_give_their_prompts_in_stored_order(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", 5)
    found = read_questions(str(path), 3)
    assert [question.prompt for question in found.questions] == [
        row["chosen"].split("Assistant:")[0] + "Assistant:" for row in rows(3)
    ]
    assert (found.kind, found.rows, found.source) == ("pairs", 3, "pairs.jsonl")
    assert found.questions == read_questions(str(path), None).questions[:3]


def test_what_is_no_prompt_is_counted(tmp_path: Path) -> None:
    first, second = rows(2)
    same = {**second, "rejected": second["chosen"]}
    path = written(tmp_path / "pairs.jsonl", [first, first, same, second])
    found = read_questions(path, None)
    assert len(found.questions) == 2
    assert found.dropped == {"identical_responses": 1, "repeated_prompt": 1}
    assert found.describe() == (
        "pairs.jsonl: 2 prompts of preference pairs of 4 rows read; dropped: 1 "
        "identical_responses, 1 repeated_prompt"
    )


def test_prompts_behind_a_limit_are_known_where_asked_for(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "pairs.jsonl", 5))
    assert read_questions(path, 3).beyond == frozenset()
    behind = read_questions(path, None).questions[3:]
    assert read_questions(path, 3, beyond=True).beyond == {one.key for one in behind}


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Hi\n\nHow do I mend a kite?\n", encoding="utf-8")
    found = read_questions(str(path), None)
    assert [(one.prompt, one.id) for one in found.questions] == [
        ("Hi", 1),
        ("How do I mend a kite?", 3),
    ]
    assert read_questions(f"{path},limit=1", None).rows == 1


def test_json_lines_of_prompts_are_those_of_mav_generate(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    path = written(tmp_path / "prompts.jsonl", [{"messages": messages}, {"prompt": "Ho"}])
    found = read_questions(path, None)
    assert [one.prompt for one in found.questions] == [messages, "Ho"]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_files_of_other_editors_are_read_alike(tmp_path: Path, name: str) -> None:
    texts = ["Hi", " ", "How do I mend a kite?", "Hi"]
    if name.endswith(".jsonl"):
        texts = [json.dumps({"prompt": text}) for text in texts]
    (tmp_path / name).write_bytes("".join(f"{text}\r\n\r\n" for text in texts).encode("utf-8-sig"))
    found = read_questions(str(tmp_path / name), None)
    assert [one.prompt for one in found.questions] == ["Hi", "How do I mend a kite?"]
    # A line of blanks is none, a prompt of blanks is one that says nothing.
    blank = {"empty_prompt": 1} if name.endswith(".jsonl") else {}
    assert found.dropped == {**blank, "repeated_prompt": 1}


def test_alpaca_evals_instructions(tmp_path: Path) -> None:
    set_of = [
        {"instruction": "Name a tree.", "output": "An elm.", "dataset": "koala", "generator": "x"},
        {"instruction": "Human: is this one\n\nAssistant: message?"},
        {"instruction": "  "},
    ]
    for name in ("alpaca_eval.json", "alpaca_eval.jsonl"):
        found = read_questions(written(tmp_path / name, set_of), None)
        assert found.kind == "alpaca-eval"
        assert [(one.id, one.dataset) for one in found.questions] == [(0, "koala"), (1, None)]
        assert found.questions[1].prompt == ({"role": "user", "content": set_of[1]["instruction"]},)
        assert found.dropped == {"empty_prompt": 1}


def test_mt_benchs_questions_have_two_turns(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}
    found = read_questions(written(tmp_path / "question.jsonl", [row]), None)
    (question,) = found.questions
    assert (found.kind, question.id, question.turns) == ("mt-bench", 81, 2)
    assert question.asked([]) == ({"role": "user", "content": "Write."},)
    assert question.asked(["Here."]) == [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "Rewrite."},
    ]


def test_a_prompt_is_the_same_however_it_is_written() -> None:
    forms: list[Any] = [
        "Hi",
        "\n\nHuman: Hi\n\nAssistant:",
        "\n\nHuman:  Hi \n\nAssistant: ",
        [{"role": "user", "content": " Hi"}],
    ]
    assert len({key_of(form) for form in forms}) == 1
    assert key_of("Ho") != key_of("Hi")


def test_the_digest_is_of_prompts_and_follow_ups(tmp_path: Path) -> None:
    found = [
        read_questions(written(tmp_path / "question.jsonl", [{"turns": turns}]), None).digest
        for turns in (["a", "b"], ["a", "c"], ["a"], ["b", "b"], ["a", "b"])
    ]
    assert len(set(found)) == 4
    assert found[0] == found[-1]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("a.json", {"instruction": "x"}, "got a JSON dict, expected a list"),
        ("a.json", [{"instruction": 3}], 'row 0: got {"instruction": 3}, expected an object'),
        ("a.jsonl", [{"turns": []}], "line 1: got {\"turns\": []}, expected 'turns'"),
        ("a.jsonl", [{"prompt": "x", "alpha": 1}], "line 1: got its own alpha"),
        ("a.jsonl", [{"text": "x"}], 'line 1: got \'{"text": "x"}\', expected either'),
        ("a.json", [{"instruction": " "}], "no usable prompt among 1 rows (dropped: 1 empty"),
        ("a.json", [{"text": "x"}], "not a preference pair"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, value: Any, told: str) -> None:
    if isinstance(value, dict):
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    else:
        written(tmp_path / name, value)
    with pytest.raises(DataError, match=re.escape(told)):
        read_questions(str(tmp_path / name), None)


def test_what_follows_a_name_is_told_as_of_prompts() -> None:
    with pytest.raises(UsageError, match=r"^prompts: x,splat=y: got 'splat=y', expected one of"):
        read_questions("x,splat=y", None)
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file or folder"):
        read_questions("nowhere.jsonl", None)


def test_a_question_asks_for_one_turn_more_than_it_has_follow_ups() -> None:
    assert Question(prompt="a").turns == 1
    assert Question(prompt="a", follow_ups=("b", "c")).turns == 3
