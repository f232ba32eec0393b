"""Completions with labels become pairs of one prompt, and what is left over is counted."""

from collections import Counter
from typing import Any

import datasets
import pytest

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.pairs import prompt_id
from mav.pipeline.preferences.reader import PreferencePair, ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from tests.support.caches.preference_rows import PAIR, PROMPT, assistant, user


def one(completion: Any, label: Any, prompt: Any = "How are you?") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def read(rows: list[dict[str, Any]], **more: Any) -> tuple[list[PreferencePair], ReadCounts]:
    counts = ReadCounts()
    return [*read_pairs(DataSource(rows=rows, **more), counts)], counts


@pytest.mark.parametrize(
    "rows",
    [
        [one("Fine.", True), one("Go away.", False)],
        [one("Fine.", 1), one("Go away.", 0)],
        [one("Fine.", "true"), one("Go away.", "False")],
        [
            one([assistant("Fine.")], True, [user("How are you?")]),
            one([assistant("Go away.")], False, [user("How are you?")]),
        ],
        [
            {"completion": PROMPT + " Fine.", "label": True},
            {"completion": PROMPT + " Go away.", "label": False},
        ],
        [{**row, "chosen": None} for row in (one("Fine.", True), one("Go away.", False))],
    ],
    ids=["texts", "numbers", "CSV", "messages", "transcripts", "empty columns"],
)
def test_two_completions_of_a_prompt_are_a_pair(rows: list[dict[str, Any]]) -> None:
    pairs, counts = read(rows)
    assert (pairs, counts.rows, counts.dropped) == ([PAIR], 2, Counter(second_of_a_pair=1))
    if "completion" in rows[0] and isinstance(rows[0]["completion"], str):
        source = DataSource(rows=datasets.Dataset.from_list(rows))
        assert [*read_pairs(source, ReadCounts())] == [PAIR]


def test_each_completion_is_in_one_pair_and_the_rest_is_counted() -> None:
    rows = [
        one("a", True),
        one("x", True, "Alone"),
        one("b", False),
        one("c", False),
        one("d", True),
        one("e", False),
        one("same", True, "Twice"),
        one("same", False, "Twice"),
        one("y", False, "Bad alone"),
        one("", True, "Empty"),
        one("z", False, "Empty"),
    ]
    pairs, counts = read(rows)
    assert [(pair.chosen, pair.rejected, pair.source_row) for pair in pairs] == [
        (" a", " b", 0),
        (" d", " c", 4),
    ]
    assert counts.dropped == {
        "no_rejected_completion": 1,
        "no_chosen_completion": 2,
        "identical_responses": 2,
        "empty_response": 2,
        "second_of_a_pair": 2,
    }
    assert counts.rows == len(pairs) + counts.dropped.total()


def test_data_without_a_pair_is_refused_with_the_reason() -> None:
    rows = [one("a", True), one("b", True), one("c", False, "Other")]
    with pytest.raises(
        DataError,
        match="memory:list: got 2 good and 1 bad completions of 2 prompts, of which none has both",
    ):
        read(rows)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (one("b", "bad"), "row 1: got label 'bad', expected true or false"),
        (one("b", 0.5), "row 1: got label 0.5, expected true or false"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "row 1: got .*, expected 'prompt',",
        ),
        (one(3, True), "row 1: not a preference pair"),
    ],
)
def test_rows_of_another_form_are_told(second: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read([one("a", True), second])


def test_held_out_prompts_are_noted_without_a_pair_too() -> None:
    rows = [one("a", True), one("b", False), one("c", True, "Alone")]
    _, counts = read(rows, held_out=True)
    prompts = ("How are you?", "Alone")
    assert counts.held_out_prompts == {
        prompt_id(f"\n\nHuman: {prompt}\n\nAssistant:") for prompt in prompts
    }


def test_other_names_go_with_it() -> None:
    rows = [
        {"q": "How are you?", "a": "Fine.", "ok": 1},
        {"q": "How are you?", "a": "Go away.", "ok": 0},
    ]
    names = {"prompt": "q", "completion": "a", "label": "ok"}
    assert read(rows, columns=names)[0] == [PAIR]
