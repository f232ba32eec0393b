"""What rows of a data set are read as: what they do not need is ignored, what matters never is."""

import json
from pathlib import Path
from typing import Any, Final

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.pairs import PreferencePair, to_pair
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.rows import COLUMNS, read_responses
from mav.pipeline.preferences.sources import DataSource

ROW: Final[dict[str, Any]] = {"prompt": "Hi", "chosen": "Arr", "rejected": "Hello"}
PROMPT: Final = "\n\nHuman: Hi\n\nAssistant:"
SYSTEM: Final = "\n\nSystem: You are a pirate."


def pair_of(row: dict[str, Any]) -> PreferencePair | str:
    return to_pair(*read_responses(row, "row"), 0)


def turn(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


NEUTRAL: Final[dict[str, Any]] = {
    "name": None,
    "tool_calls": [],
    "function_call": None,
    "audio": None,
}
SAME: Final[dict[str, dict[str, Any]]] = {
    "parts of text": {
        "prompt": [turn("user", parts("Hi"))],
        "chosen": [turn("assistant", parts("Arr"))],
        "rejected": [turn("assistant", [{"type": "text", "text": "Hel"}, "lo"])],
    },
    "fields that ask for nothing": {
        "prompt": [turn("user", "Hi", **NEUTRAL)],
        "chosen": [turn("assistant", "Arr", **NEUTRAL)],
        "rejected": [turn("assistant", "Hello", refusal=None, weight=1)],
    },
    "as ShareGPT has them": {
        "prompt": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Arr"},
        "rejected": {"from": "gpt", "value": "Hello"},
    },
    "messages in JSON": {
        "prompt": json.dumps([turn("user", "Hi")]),
        "chosen": json.dumps([turn("assistant", "Arr")]),
        "rejected": json.dumps([turn("assistant", "Hello")]),
    },
    "single messages": {
        "prompt": turn("user", "Hi"),
        "chosen": turn("assistant", "Arr"),
        "rejected": turn("assistant", "Hello"),
    },
    "empty columns that would matter": {
        **ROW, "tools": "[]", "images": [], "system": "", "history": None, "functions": "null",
    },
}  # fmt: skip


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_all_are_the_same_pair(row: dict[str, Any]) -> None:
    expected = PreferencePair(prompt=PROMPT, chosen=" Arr", rejected=" Hello", source_row=0)
    assert pair_of(row) == expected


@given(
    st.dictionaries(
        st.text().filter(lambda name: name not in COLUMNS),
        st.none() | st.integers() | st.text() | st.lists(st.integers()),
        max_size=4,
    )
)
def test_columns_that_say_nothing_of_the_pair_change_nothing(more: dict[str, Any]) -> None:
    assert pair_of({**more, **ROW}) == pair_of(ROW)


# What changes the meaning


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"chosen": f"{PROMPT} Arr", "rejected": f"{PROMPT} Hello"},
        {**ROW, "prompt": [turn("user", "Hi")]},
        {**ROW, "prompt": [turn("system", "You are a pirate."), turn("user", "Hi")]},
    ],
    ids=["texts", "transcripts", "messages", "messages that have it"],
)
def test_a_system_column_is_the_first_turn(column: str, row: dict[str, Any]) -> None:
    pair = pair_of({**row, column: "You are a pirate."})
    assert isinstance(pair, PreferencePair)
    assert (pair.prompt, pair.chosen) == (SYSTEM + PROMPT, " Arr")


def test_two_systems_that_differ() -> None:
    row = {**ROW, "prompt": [turn("system", "Be kind."), turn("user", "Hi")], "system": "Be rude."}
    assert pair_of(row) == "two_system_texts"


LEFT_OUT: Final[dict[str, list[dict[str, Any]]]] = {
    "tools": [{**ROW, "tools": [{"name": "search"}]}, {**ROW, "tools": '[{"name": "search"}]'}],
    "images": [{**ROW, "images": ["a.png"]}],
    "history": [{**ROW, "history": [["a", "b"]]}],
    "tool_calls": [
        {**ROW, "chosen": [turn("assistant", None, tool_calls=[{"id": "1"}])]},
        {**ROW, "prompt": [turn("user", "Hi"), turn("tool", "42")]},
    ],
    "image_content": [{**ROW, "prompt": [turn("user", [{"type": "image"}, *parts("Hi")])]}],
    "empty_response": [{**ROW, "chosen": [turn("assistant", None)]}],
    "invalid_unicode": [{**ROW, "chosen": [turn("assistant", "\ud800")]}],
    "prompts_differ": [
        {**ROW, "chosen": "\n\nHuman: Other\n\nAssistant: Arr"},
        {**ROW, "chosen": [turn("user", "Other"), turn("assistant", "Arr")]},
    ],
    "no_assistant_turn": [{"chosen": "a", "rejected": "b"}],
}


@pytest.mark.parametrize(
    ("cause", "row"), [(cause, row) for cause, rows in LEFT_OUT.items() for row in rows]
)
def test_rows_that_ask_for_more_are_left_out_by_cause(cause: str, row: dict[str, Any]) -> None:
    assert pair_of(row) == cause


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Hi", "chosen": "a", "rejected": "b"}, "no column 'prompt'; rename 'quest"),
        ({"prompt": "Hi", "rejected": "b"}, "there is no column 'chosen'"),
        ({"prompt": "Hi", "completion": "a", "label": True}, "there is no column 'chosen'"),
        ({**ROW, "chosen": None}, "'chosen' is null"),
        ({**ROW, "chosen": [turn("judge", "a")]}, r"messages\[0\]: got role 'judge'"),
        ({**ROW, "chosen": [turn("assistant", 3)]}, "got 3 as its content"),
        ({**ROW, "chosen": [{"role": "assistant"}]}, "got None as its content"),
        ({**ROW, "system": 3}, "'system' is int, expected a text"),
        ({**ROW, "prompt": "<|im_start|>user\nHi<|im_end|>"}, r"begins with '<\|im_start\|>'"),
        ({**ROW, "chosen": " <start_of_turn>model\nArr"}, "the markup of a chat template"),
        ({**ROW, "prompt": "[{'role': 'user', 'content': 'Hi'}]"}, "is not JSON"),
    ],
)
def test_another_form_is_refused_with_what_was_got(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"row: not a preference pair.*{reason}"):
        pair_of(row)


def test_an_answer_may_quote_a_transcript() -> None:
    quoted = "Like this:\n\nHuman: Hi\n\nAssistant: Arr"
    pair = pair_of({**ROW, "chosen": quoted})
    assert isinstance(pair, PreferencePair)
    assert (pair.prompt, pair.chosen) == (PROMPT, f" {quoted}")


# Columns that cannot be read


def test_a_column_that_is_not_needed_is_not_decoded(tmp_path: Path) -> None:
    """As images are without the library that decodes them, or timestamps beyond Python's years."""
    table = pyarrow.table(
        {
            **{name: [value] for name, value in ROW.items()},
            "when": pyarrow.array([2**55], pyarrow.timestamp("ms")),
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    data = datasets.Dataset(table)
    data.save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        (pair,) = read_pairs(DataSource(id=str(tmp_path / name)), ReadCounts())
        assert pair == pair_of(ROW)


def test_prompts_of_rows_that_are_left_out_are_held_out_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "tools": ["x"]}))
    counts = ReadCounts()
    assert list(read_pairs(DataSource(id=str(path), held_out=True), counts)) == []
    pair = pair_of(ROW)
    assert isinstance(pair, PreferencePair)
    assert counts.held_out_prompts == {pair.prompt_id}
    assert counts.dropped == {"tools": 1}
