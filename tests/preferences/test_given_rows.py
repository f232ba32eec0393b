"""Rows that are given as objects: what they may be, and what is told of others."""

from collections.abc import Iterator
from typing import Any

import datasets
import pytest

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource, sources_of
from tests.support.caches.preference_rows import FORMS, PAIR
from tests.support.models.tiny import rows


def endless() -> Any:
    def generate() -> Iterator[dict[str, str]]:
        while True:
            yield from rows(3)

    return datasets.IterableDataset.from_generator(generate)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_list_holds_every_form_of_a_row(form: str) -> None:
    counts = ReadCounts()
    assert [*read_pairs(DataSource(rows=[FORMS[form]]), counts)] == [PAIR]
    assert counts.rows == 1


def test_a_stream_without_an_end_says_so() -> None:
    with pytest.raises(UsageError, match=r"got a stream, which may have no end.*limit=10_000"):
        sources_of(endless())
    counts = ReadCounts()
    assert len([*read_pairs(DataSource(rows=endless(), limit=7), counts)]) == 7
    assert counts.rows == 7


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (7, "data: got int, expected a DataSource, a file or hub id, a list of dictionaries"),
        ({"prompt": ["a"]}, "data: got dict, expected a DataSource"),
        ([], "data: got a list without rows"),
        ((), "data: got none, expected at least one data set"),
        ((row for row in rows(2)), "rows are read again on resuming, so make it a list"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_list(rows(2))),
            r"data: got a DatasetDict of train, expected one split of it, such as data\['train'\]",
        ),
        (DataSource(), "data: got a DataSource without `id` or `rows`"),
    ],
)
def test_what_is_no_data_set(given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        sources_of(given)


def test_it_has_the_split_it_says_it_is() -> None:
    test = datasets.Dataset.from_list(rows(2), split="test")
    (source,) = sources_of(test)
    assert (source.split, source.is_held_out, source.name) == ("test", True, "memory:Dataset test")
    assert not DataSource(rows=test, held_out=False).is_held_out
    assert DataSource(id="mine", rows=rows(2)).stored_id == "mine"


def test_columns_that_cannot_be_decoded_are_not_read() -> None:
    given = datasets.Dataset.from_list([{**row, "image": None, "note": "x"} for row in rows(2)])
    given = given.cast_column("note", datasets.Value("large_string"))
    assert len([*read_pairs(DataSource(rows=given), ReadCounts())]) == 2


def test_rows_of_no_known_form_are_told_by_their_number() -> None:
    with pytest.raises(DataError, match="memory:list, row 1: not a preference pair"):
        [*read_pairs(DataSource(rows=[rows(1)[0], {"text": "x"}]), ReadCounts())]
    with pytest.raises(UsageError, match="data_dir: got 'a', which goes with a data set of files"):
        DataSource(rows=rows(1), data_dir="a")
