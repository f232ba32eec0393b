"""Columns of other names, functions of rows, and CSV: the same pairs as from the usual columns."""

import csv
import datetime
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.preferences.reader import PreferencePair, ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource, parse_source
from tests.support.caches.preference_rows import PAIR, write_jsonl

OTHER = {"question": "How are you?", "good": "Fine.", "bad": "Go away."}
NAMES = {"prompt": "question", "chosen": "good", "rejected": "bad"}


def read(source: DataSource) -> tuple[list[PreferencePair], Counter[str]]:
    counts = ReadCounts()
    return [*read_pairs(source, counts)], counts.dropped


def write_csv(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_file(folder: Path, kind: str) -> DataSource:
    path = folder / f"rows.{kind}"
    if kind == "csv":
        write_csv(path, [OTHER])
    elif kind == "jsonl":
        path = write_jsonl(folder, OTHER)
    else:
        parquet.write_table(pyarrow.Table.from_pylist([OTHER]), path)
    return DataSource(id=str(path), columns=NAMES)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "list", "Dataset", "saved"])
def test_columns_of_other_names(tmp_path: Path, kind: str) -> None:
    if kind == "list":
        source = DataSource(rows=[OTHER], columns=NAMES)
    elif kind == "Dataset":
        source = DataSource(rows=datasets.Dataset.from_list([OTHER]), columns=NAMES)
    elif kind == "saved":
        datasets.Dataset.from_list([OTHER]).save_to_disk(tmp_path / "saved")
        source = DataSource(id=str(tmp_path / "saved"), columns=NAMES)
    else:
        source = as_file(tmp_path, kind)
    assert read(source) == ([PAIR], Counter())


def test_names_that_are_taken_change_places() -> None:
    row = {"prompt": "How are you?", "chosen": "Go away.", "rejected": "Fine."}
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    assert read(DataSource(rows=[row], columns=swapped))[0] == [PAIR]


def test_a_function_makes_rows_and_leaves_some_out() -> None:
    def to_row(row: Mapping[str, Any]) -> dict[str, str] | None:
        if row["score"] == 0:
            return None
        return {"prompt": row["q"], "chosen": row["a"][0], "rejected": row["a"][1]}

    rows = [
        {"q": "How are you?", "a": ["Fine.", "Go away."], "score": 2},
        {"q": "How are you?", "a": ["x", "y"], "score": 0},
    ]
    for given in (rows, datasets.Dataset.from_list(rows)):
        found = read(DataSource(rows=given, transform=to_row))
        assert found == ([PAIR], Counter(left_out_by_transform=1))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"columns": {"prompt": "query"}}, "row 0: no column 'query', .* there are question, good"),
        ({"transform": lambda row: row["x"]}, "row 0: `transform` failed: KeyError: 'x'"),
        ({"transform": lambda row: 3}, "`transform` gave int, expected a dictionary, or None"),
        ({}, "Columns of other names are told with `columns`"),
    ],
)
def test_what_is_wrong_is_told_with_its_row(given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(DataSource(rows=[OTHER], **given))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"columns": {"question": "prompt"}}, "columns: got 'question', .* mean prompt=question"),
        ({"columns": {"answer": "x"}}, "expected one of prompt, chosen, rejected, completion"),
        ({"columns": {"prompt": ""}}, "columns: got '' for prompt, expected a column's name"),
        ({"columns": "prompt"}, "columns: got str, expected such as {'prompt': 'question'}"),
        ({"transform": 3}, "transform: got int, expected a function of a row"),
    ],
)
def test_what_cannot_be_columns(given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        DataSource(rows=[OTHER], **given)


def test_each_data_set_may_have_its_own() -> None:
    everyone = DataSource(columns={"prompt": "p"})
    text = "x.csv,columns=prompt:question+chosen:good"
    assert parse_source(text, everyone).columns == {"prompt": "question", "chosen": "good"}
    assert parse_source("y.csv", everyone).columns == {"prompt": "p"}
    with pytest.raises(
        UsageError, match=r"columns: got 'prompt', expected such as prompt:question"
    ):
        parse_source("x.csv,columns=prompt", everyone)


def test_csv_holds_texts_with_commas_quotes_and_lines(tmp_path: Path) -> None:
    row = {"prompt": 'Say "a, b"\nand c', "chosen": "Fine,\nthen.", "rejected": 'No "way".'}
    path = write_csv(tmp_path / "rows.csv", [row], "utf-8-sig")
    ((pair,), _) = read(DataSource(id=str(path)))
    assert (pair.given, pair.chosen) == (row["prompt"], " Fine,\nthen.")
    large = "x" * 200_000
    path = write_csv(tmp_path / "large.csv", [{**row, "chosen": large}])
    assert read(DataSource(id=str(path)))[0][0].chosen == f" {large}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt,chosen,rejected\na,b\n", "line 2: got 2 values, expected 3"),
        ("prompt,chosen,rejected\na,b,c\na,b,c,d\n", "line 3: got 4 values, expected 3"),
        ('prompt,chosen,rejected\na,b,"c\n', "line 2: not CSV"),
        ("prompt,prompt\na,b\n", "two columns have the same name"),
    ],
)
def test_csv_that_is_wrong_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        read(DataSource(id=str(path)))


def test_a_limit_counts_rows_before_they_are_made(tmp_path: Path) -> None:
    rows = [{**OTHER, "question": f"{day}?"} for day in map(datetime.date.fromordinal, (1, 2, 3))]
    source = DataSource(id=str(write_csv(tmp_path / "a.csv", rows)), columns=NAMES, limit=2)
    assert len(read(source)[0]) == 2
