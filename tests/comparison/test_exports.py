"""Answers in the forms of AlpacaEval and FastChat."""

import json
from pathlib import Path

import pytest

from mav.pipeline.comparison.answers import read_answers
from mav.pipeline.comparison.exports import export_answers, mt_bench
from mav.pipeline.comparison.questions import Question
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.comparison.systems import System
from tests.support.steering.comparisons import prompts_of, system_of


def test_alpaca_evals_outputs_are_read_again(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "Name a tree."}]
    prompts = prompts_of(Question(prompt=message, dataset="koala"), "Hi")
    (path,) = export_answers("alpaca-eval", prompts, [system_of("it", "Elm.", None)], tmp_path)
    assert path == tmp_path / "alpaca-eval" / "it.json"
    assert json.loads(path.read_text()) == [
        {
            "instruction": "Name a tree.",
            "output": "Elm.",
            "generator": "it",
            "dataset": "koala",
        },
        {"instruction": "Hi", "output": "", "generator": "it", "dataset": "mav-compare"},
    ]
    assert [a.response for a in read_answers("it", path, prompts).answers] == ["Elm.", ""]


def test_a_conversation_is_one_instruction(tmp_path: Path) -> None:
    prompts = prompts_of("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Why?\n\nAssistant:")
    (path,) = export_answers("alpaca-eval", prompts, [system_of("it", "So.")], tmp_path)
    (row,) = json.loads(path.read_text())
    assert row["instruction"] == "User: Hi\n\nAssistant: Ho\n\nUser: Why?"


def test_fastchats_answers_have_all_turns() -> None:
    prompts = prompts_of(
        Question(prompt="a", follow_ups=("b",), id=81), Question(prompt="c", follow_ups=("d",))
    )
    answers = [
        Answer(key=AnswerKey(*key), response=text)
        for key, text in (((0, 0, 0), "A"), ((0, 0, 1), "B"), ((0, 1, 0), "C"), ((1, 0, 0), "D"))
    ]
    system = System(name="it", answers={answer.key: answer for answer in answers})
    (row,) = mt_bench(prompts, system, 12.5)
    assert {**row, "answer_id": ""} == {
        "question_id": 81,
        "answer_id": "",
        "model_id": "it",
        "choices": [{"index": 0, "turns": ["A", "B"]}],
        "tstamp": 12.5,
    }
    assert mt_bench(prompts, system, 0.0)[0]["answer_id"] == row["answer_id"]


@pytest.mark.parametrize(("form", "count"), [("mt-bench", 1), ("alpaca-eval", 2)])
def test_files_are_whole(form: str, count: int, tmp_path: Path) -> None:
    prompts = prompts_of("a", "b")
    (path,) = export_answers(form, prompts, [system_of("it", "x", None)], tmp_path)  # type: ignore[arg-type]
    text = path.read_text()
    rows = json.loads(text) if form == "alpaca-eval" else [json.loads(r) for r in text.splitlines()]
    assert len(rows) == count
