"""Files and folders of pairs: every kind gives the same pairs, and what is wrong is named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

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
from tests.support.caches.preference_rows import (
    FORMS,
    PAIR,
    PROMPT,
    Row,
    read,
    transcripts,
    write_jsonl,
)


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
    bad = {"chosen": PROMPT, "rejected": PROMPT + " Go away."}
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


def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(transcripts(0)) + '\n\n{"chosen": "x", \n')
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: not JSON (")


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
    (tmp_path / "rows.xlsx").write_text("chosen,rejected\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "rows.xlsx")
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
