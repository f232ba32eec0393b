"""Preference pairs: every form and file gives the same pair, every other row its cause."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.preferences.reader import (
    FILE_FORMATS,
    PreferencePair,
    ReadCounts,
    read_pairs,
)
from mav.pipeline.preferences.sources import DataSource

Row = dict[str, Any]

PROMPT = "\n\nHuman: How are you?\n\nAssistant:"
PAIR = PreferencePair(prompt=PROMPT, chosen=" Fine.", rejected=" Go away.", source_row=0)
PAIR_ID, PROMPT_ID = 834432427572297180, 2790052315369914781


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def transcripts(number: int) -> Row:
    """An HH-RLHF row that is good, its prompt told by its number."""
    prompt = f"\n\nHuman: What is {number}?\n\nAssistant:"
    return {"chosen": f"{prompt} A number.", "rejected": f"{prompt} A letter."}


FORMS: dict[str, Row] = {
    "transcripts": {"chosen": PROMPT + " Fine.", "rejected": PROMPT + " Go away."},
    "no prompt is none": {
        "prompt": None,
        "chosen": PROMPT + " Fine.",
        "rejected": PROMPT + " Go away.",
    },
    "prompt in the template": {"prompt": PROMPT, "chosen": " Fine.", "rejected": " Go away."},
    "bare prompt": {"prompt": "How are you?", "chosen": "Fine.", "rejected": "Go away."},
    "white space around the prompt": {
        "prompt": " How are you?\n",
        "chosen": " Fine.",
        "rejected": "Go away.",
    },
    "prompt and whole transcripts": {
        "prompt": "How are you?",
        "chosen": PROMPT + " Fine.",
        "rejected": PROMPT + " Go away.",
    },
    "messages, explicit prompt": {
        "prompt": [user("How are you?")],
        "chosen": [assistant("Fine.")],
        "rejected": [assistant("Go away.")],
    },
    "messages, implicit prompt": {
        "chosen": [user("How are you?"), assistant("Fine.")],
        "rejected": [user("How are you?"), assistant("Go away.")],
    },
    "messages, prompt and whole conversations": {
        "prompt": [user("How are you?")],
        "chosen": [user("How are you?"), assistant("Fine.")],
        "rejected": [user("How are you?"), assistant("Go away.")],
    },
    "text prompt and whole conversations": {
        "prompt": "How are you?",
        "chosen": [user("How are you?"), assistant("Fine.")],
        "rejected": [user("How are you?"), assistant("Go away.")],
    },
    "text prompt and answers as messages": {
        "prompt": "How are you?",
        "chosen": [assistant("Fine.")],
        "rejected": [assistant("Go away.")],
    },
    "messages prompt and answers as texts": {
        "prompt": [user("How are you?")],
        "chosen": "Fine.",
        "rejected": "Go away.",
    },
    "other fields beside": {
        "prompt": "How are you?",
        "chosen": "Fine.",
        "rejected": "Go away.",
        "score": 3.5,
        "messages": None,
    },
}


def read(path: Path | str, **options: Any) -> tuple[list[PreferencePair], ReadCounts]:
    counts = ReadCounts()
    return list(read_pairs(DataSource(id=str(path), **options), counts)), counts


def write_jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Rows


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_a_row_gives_the_same_pair(tmp_path: Path, row: Row) -> None:
    pairs, counts = read(write_jsonl(tmp_path, row))
    assert pairs == [PAIR]
    assert (counts.rows, counts.dropped) == (1, {})


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS.keys())
def test_ids_are_golden_and_independent_of_the_form(tmp_path: Path, row: Row) -> None:
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert (pair.pair_id, pair.prompt_id) == (PAIR_ID, PROMPT_ID)


def test_ids_tell_pairs_and_prompts_apart() -> None:
    swapped = PreferencePair(prompt=PROMPT, chosen=" Go away.", rejected=" Fine.", source_row=0)
    assert swapped.pair_id != PAIR.pair_id
    assert swapped.prompt_id == PAIR.prompt_id
    asked = PROMPT.replace("Human:", "Human: Please,")
    other = PreferencePair(prompt=asked, chosen=" Fine.", rejected=" x", source_row=0)
    assert other.prompt_id != PAIR.prompt_id


@pytest.mark.parametrize("around", ["{} ", "{}\n", " {}", "  {}\t"])
def test_white_space_of_a_turn_makes_no_other_prompt(tmp_path: Path, around: str) -> None:
    text = around.format("How are you?")
    rows: list[Row] = [
        {"prompt": text, "chosen": "Fine.", "rejected": "Go away."},
        {"prompt": [user(text)], "chosen": [assistant("Fine.")], "rejected": [assistant("No.")]},
        {"prompt": f"\n\nHuman: {text}\n\nAssistant: ", "chosen": "Fine.", "rejected": "No."},
    ]
    pairs, _ = read(write_jsonl(tmp_path, *rows))
    assert {pair.prompt_id for pair in pairs} == {PROMPT_ID}


def test_a_message_that_begins_like_a_systems_turn(tmp_path: Path) -> None:
    text = "System: error 5 on boot. What now?"
    (pair,), _ = read(write_jsonl(tmp_path, {"prompt": text, "chosen": "a", "rejected": "b"}))
    assert pair.prompt == f"\n\nHuman: {text}\n\nAssistant:"


def test_ids_do_not_depend_on_the_place_in_the_data(tmp_path: Path) -> None:
    (_, pair), _ = read(write_jsonl(tmp_path, transcripts(1), FORMS["bare prompt"]))
    assert (pair.pair_id, pair.source_row) == (PAIR_ID, 1)


def test_several_turns_are_the_same_in_every_form(tmp_path: Path) -> None:
    prompt = "\n\nSystem: Be kind.\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:"
    turns = [{"role": "system", "content": "Be kind."}, user("A?"), assistant("B."), user("C?")]
    rows: list[Row] = [
        {"chosen": f"{prompt} D.", "rejected": f"{prompt} E."},
        {"prompt": prompt, "chosen": " D.", "rejected": " E."},
        {"prompt": turns, "chosen": [assistant("D.")], "rejected": [assistant("E.")]},
        {"chosen": [*turns, assistant("D.")], "rejected": [*turns, assistant("E.")]},
    ]
    pairs, _ = read(write_jsonl(tmp_path, *rows))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        (prompt, " D.", " E.")
    ] * 4


def test_answers_of_several_turns_keep_their_explicit_prompt(tmp_path: Path) -> None:
    row = {
        "prompt": [user("A?")],
        "chosen": [assistant("B."), user("C?"), assistant("D.")],
        "rejected": [assistant("B."), user("C?"), assistant("E.")],
    }
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt == "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:"


@pytest.mark.parametrize(
    ("text", "earlier", "prompt"),
    [
        (
            "A?",
            [{"role": "system", "content": "Be kind."}, user("A?")],
            "\n\nSystem: Be kind.\n\nHuman: A?",
        ),
        ("A?", [user("A?"), assistant("B."), user("C?")], None),
        ("\nA?", [user("\nA?")], "\n\nHuman: A?"),
        ("  A?", [user("A? \n")], "\n\nHuman: A?"),
    ],
)
def test_whole_conversations_beside_a_text_prompt_do_not_double_it(
    tmp_path: Path, text: str, earlier: list[dict[str, str]], prompt: str | None
) -> None:
    row = {
        "prompt": text,
        "chosen": [*earlier, assistant("D.")],
        "rejected": [*earlier, assistant("E.")],
    }
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt.count("A?") == 1
    assert prompt is None or pair.prompt == f"{prompt}\n\nAssistant:"


def test_a_response_keeps_its_own_white_space(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "\nOne\n\n", "rejected": "  Two "}
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert (pair.chosen, pair.rejected) == ("\nOne\n\n", "  Two ")


def test_braces_in_a_prompt_are_no_template(tmp_path: Path) -> None:
    row = {"prompt": "Why {prompt} and {0}?", "chosen": "a", "rejected": "b"}
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt == "\n\nHuman: Why {prompt} and {0}?\n\nAssistant:"


def test_a_transcript_is_cut_at_its_last_assistant_turn(tmp_path: Path) -> None:
    row = {
        "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
        "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E\n\nHuman: F",
    }
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt.endswith("Human: C\n\nAssistant:")
    assert pair.rejected == " E\n\nHuman: F"


def test_text_outside_ascii_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "Grüße 世界 \u2028 \x85 🌍"
    row = {"prompt": text, "chosen": text, "rejected": "x"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (pair,), _ = read(path)
    assert pair.prompt == f"\n\nHuman: {text}\n\nAssistant:"
    assert pair.chosen == f" {text}"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    row = FORMS["bare prompt"]
    text = json.dumps([row] if name.endswith(".json") else row).encode("utf-8-sig")
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read(path)[0] == [PAIR]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_that_is_nested_too_deep_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(DataError, match=f"{name}: cannot be read: its JSON is nested too deep"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("saved", "asked", "told"),
    [
        ("test", {}, "split: got 'train', but .* holds 'test'; say split=test"),
        ("test", {"split": "train"}, "say split=test"),
        ("train", {"split": "test"}, "say split=train"),
        (None, {"split": "test"}, "was saved without the name of a split"),
    ],
)
def test_a_split_that_a_saved_data_set_is_not_known_to_be(
    tmp_path: Path, saved: str | None, asked: dict[str, str], told: str
) -> None:
    rows = [transcripts(1)]
    datasets.Dataset.from_list(rows, split=saved).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=told):
        read(tmp_path / "saved", **asked)
    assert len(read(tmp_path / "saved", split=saved or "train")[0]) == 1


# Rows that are dropped

DROPPED: dict[str, list[Row]] = {
    "no_assistant_turn": [
        {"chosen": "no turns at all", "rejected": PROMPT + " Fine."},
        {"chosen": PROMPT + " Fine.", "rejected": "\n\nHuman: nobody answers"},
        {"chosen": [user("Hi")], "rejected": [user("Hi"), assistant("Hello")]},
        {"chosen": [user("Hi"), assistant("Hello")], "rejected": []},
    ],
    "prompts_differ": [
        {"chosen": PROMPT + " Fine.", "rejected": "\n\nHuman: What?\n\nAssistant: Go away."},
        {"chosen": [user("A"), assistant("C")], "rejected": [user("B"), assistant("D")]},
    ],
    "empty_response": [
        {"chosen": PROMPT, "rejected": PROMPT + " Go away."},
        {"prompt": "Hi", "chosen": "Hello", "rejected": " \n"},
        {"chosen": [user("A"), assistant("")], "rejected": [user("A"), assistant("B")]},
    ],
    # JSON can write half a surrogate pair, as texts cut inside an emoji have it.
    "invalid_unicode": [
        {"chosen": PROMPT + " Fine \ud83d", "rejected": PROMPT + " Go away."},
        {"prompt": "\udc00", "chosen": "Fine.", "rejected": "Go away."},
    ],
    "identical_responses": [
        {"chosen": PROMPT + " Same.", "rejected": PROMPT + " Same."},
        {"prompt": "Hi", "chosen": "Same.", "rejected": " Same."},
    ],
}


@pytest.mark.parametrize(
    ("cause", "row"), [(cause, row) for cause, rows in DROPPED.items() for row in rows]
)
def test_unusable_rows_are_dropped_by_cause(tmp_path: Path, cause: str, row: Row) -> None:
    pairs, counts = read(write_jsonl(tmp_path, row))
    assert pairs == []
    assert (counts.rows, counts.dropped) == (1, {cause: 1})


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    bad = [row for rows in DROPPED.values() for row in rows]
    pairs, counts = read(write_jsonl(tmp_path, transcripts(0), *bad, transcripts(1)))
    assert counts.dropped == {cause: len(rows) for cause, rows in DROPPED.items()}
    assert counts.rows == len(pairs) + counts.dropped.total()
    assert [pair.source_row for pair in pairs] == [0, len(bad) + 1]


# Files


def write_parquet(path: Path, rows: list[Row]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


def write_gzip(path: Path, rows: list[Row]) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, indent=2))


def write_saved(path: Path, rows: list[Row]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path)


def write_splits(path: Path, rows: list[Row]) -> None:
    rest = datasets.Dataset.from_list([transcripts(99)])
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=rest).save_to_disk(path)


SOURCES: dict[str, Callable[[Path, list[Row]], None]] = {
    "rows.jsonl": write_lines,
    "ROWS.JSONL": write_lines,
    "rows.jsonl.gz": write_gzip,
    "rows.json": write_json,
    "rows.parquet": write_parquet,
    "saved": write_saved,
    "saved.splits": write_splits,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("form", ["transcripts", "messages, explicit prompt", "bare prompt"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, name: str, form: str) -> None:
    SOURCES[name](tmp_path / name, [FORMS[form]] * 5)
    pairs, counts = read(tmp_path / name)
    expected = [PreferencePair(**{**vars(PAIR), "source_row": n}) for n in range(5)]
    assert (pairs, counts.rows) == (expected, 5)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (3, 3), (5, 5), (6, 5)])
def test_limit_reads_the_first_rows(tmp_path: Path, name: str, limit: int, rows: int) -> None:
    SOURCES[name](tmp_path / name, [transcripts(number) for number in range(5)])
    pairs, counts = read(tmp_path / name, limit=limit)
    assert [pair.source_row for pair in pairs] == list(range(rows))
    assert counts.rows == rows


def test_limit_counts_rows_not_pairs(tmp_path: Path) -> None:
    bad = DROPPED["empty_response"][0]
    pairs, counts = read(write_jsonl(tmp_path, bad, transcripts(1), transcripts(2)), limit=2)
    assert [pair.source_row for pair in pairs] == [1]
    assert (counts.rows, counts.dropped) == (2, {"empty_response": 1})


def test_nothing_after_the_limit_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, transcripts(0), transcripts(1))
    path.write_text(path.read_text() + "this is not JSON\n")
    pairs, _ = read(path, limit=2)
    assert len(pairs) == 2


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_a_usage_error(tmp_path: Path, limit: int) -> None:
    with pytest.raises(UsageError, match=f"limit: got {limit}, expected at least 1"):
        read(write_jsonl(tmp_path, transcripts(0)), limit=limit)


def test_another_split_of_a_saved_data_set(tmp_path: Path) -> None:
    write_splits(tmp_path / "saved", [transcripts(0)] * 3)
    (pair,), _ = read(tmp_path / "saved", split="test")
    assert "What is 99?" in pair.prompt


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\r\n".join([b"", *(json.dumps(transcripts(n)).encode() for n in (0, 1))]))
    pairs, counts = read(path)
    assert [pair.source_row for pair in pairs] == [0, 1]
    assert counts.rows == 2


def test_an_empty_file_has_no_pairs(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path)) == ([], ReadCounts())


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, transcripts(0), transcripts(1))
    path.write_text(path.read_text() + "this is not JSON\n")
    pairs = read_pairs(DataSource(id=str(path)), ReadCounts())
    assert next(pairs).source_row == 0
    assert next(pairs).source_row == 1
    with pytest.raises(DataError):
        next(pairs)


# The hub


def test_hub_data_sets_are_asked_for_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, **options: object) -> datasets.Dataset:
        asked.append((name, options))
        return datasets.Dataset.from_list([FORMS["transcripts"]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pairs, _ = read("Anthropic/hh-rlhf", split="test")
    assert pairs == [PAIR]
    assert asked == [("Anthropic/hh-rlhf", {"data_dir": None, "split": "test"})]


def test_a_hub_id_offline_is_a_data_error() -> None:
    with pytest.raises(DataError) as caught:
        read("mav-tests/no-such-data", data_dir="helpful-base")
    message = str(caught.value)
    assert message.startswith("mav-tests/no-such-data: is not available from the hub")
    assert "data_dir 'helpful-base', split 'train'" in message


# What cannot be read


def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(transcripts(0)) + '\n\n{"chosen": "x", \n')
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: not JSON (")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"chosen": PROMPT + " Fine."},
        {"rejected": PROMPT + " Fine."},
        {"prompt": "p", "chosen": 1, "rejected": 2},
        {"chosen": [{"role": "assistant"}], "rejected": [assistant("b")], "prompt": "p"},
        {"chosen": ["a"], "rejected": ["b"], "prompt": "p"},
        {"chosen": [user("a"), {"role": "assistant", "content": None}], "rejected": "b"},
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": 7, "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": {}, "rejected": "b"},
        {"prompt": "p", "chosen": 0, "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": False},
        {"prompt": "p", "chosen": {"text": "a"}, "rejected": {"text": "b"}},
    ],
)
def test_wrong_rows_say_what_was_got_and_expected(tmp_path: Path, row: Row) -> None:
    path = write_jsonl(tmp_path, transcripts(0), row)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: not a preference pair. Got {sorted(row)}; ")
    assert "'chosen' and 'rejected', with or without 'prompt'" in message


@pytest.mark.parametrize("row", [["chosen", "rejected"], "text", 3, None])
def test_rows_that_are_no_objects_are_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(DataError, match=f"line 1: not a preference pair. Got {type(row).__name__}"):
        read(write_jsonl(tmp_path, row))


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    turns = [{"role": "critic", "content": "42"}, assistant("a")]
    with pytest.raises(DataError, match=r"line 1: not a preference pair\..*got role 'critic'"):
        read(write_jsonl(tmp_path, {"chosen": turns, "rejected": turns}))


@pytest.mark.parametrize("name", [name for name in SOURCES if "jsonl" not in name.lower()])
def test_wrong_rows_are_numbered_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    SOURCES[name](tmp_path / name, [{"question": "q", "answer": "a"}] * 2)
    with pytest.raises(DataError, match=rf"{name}, row 0: not a preference pair.*'question'\]"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "a/b/nowhere", "/nowhere", "nowhere"])
def test_a_missing_file_is_told_with_what_may_be_named(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name)
    assert str(caught.value).startswith(f"{name}: no such file or folder. Name a .jsonl, ")


def test_an_unknown_ending_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("chosen,rejected\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "rows.csv")
    assert f"unknown kind of file, expected one of {', '.join(FILE_FORMATS)}" in str(caught.value)


def test_a_missing_split_lists_those_there(tmp_path: Path) -> None:
    write_splits(tmp_path / "saved", [transcripts(0)])
    with pytest.raises(DataError, match="no split 'dev', it has train, test"):
        read(tmp_path / "saved", split="dev")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder of a data set"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet", "rows.json"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    SOURCES[name](path, [transcripts(number) for number in range(50)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{name}: cannot be read: "):
        read(path)


@pytest.mark.parametrize("name", FILE_FORMATS)
def test_garbage_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"rows{name}").write_bytes(b"\xff\x00garbage\xfe" * 40)
    with pytest.raises(DataError, match=r"cannot be read|not JSON"):
        read(tmp_path / f"rows{name}")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_gzip_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "rows.jsonl.gz"
    write_gzip(path, [transcripts(number) for number in range(200)])
    damaged = bytearray(path.read_bytes())
    place = int(share * len(damaged))
    damaged[place : place + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz"):
        read(path)


@pytest.mark.parametrize("value", [{"rows": []}, "rows", 3])
def test_a_json_file_must_hold_a_list(tmp_path: Path, value: object) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=f"got a JSON {type(value).__name__}, expected a list"):
        read(tmp_path / "rows.json")


@pytest.mark.parametrize("name", SOURCES)
def test_data_dir_goes_with_the_hub_only(tmp_path: Path, name: str) -> None:
    SOURCES[name](tmp_path / name, [transcripts(0)])
    with pytest.raises(
        UsageError,
        match="data_dir: got 'harmless-base', which goes with a data set that has",
    ):
        read(tmp_path / name, data_dir="harmless-base")
