"""Reading preference pairs, from files, saved data sets or the hub; see `preference_rows`."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.preferences.columns import LEFT_OUT, adapted
from mav.pipeline.preferences.csv_rows import csv_rows
from mav.pipeline.preferences.given_rows import given_rows
from mav.pipeline.preferences.pairs import PreferencePair as PreferencePair
from mav.pipeline.preferences.pairs import ReadCounts as ReadCounts
from mav.pipeline.preferences.pairs import prompt_id, to_pair
from mav.pipeline.preferences.rows import COLUMNS, read_responses
from mav.pipeline.preferences.sources import DEFAULT_SPLIT, DataSource
from mav.pipeline.preferences.unpaired import is_unpaired, pair_up
from mav.pipeline.runtime import hub, hub_errors

Wanted = Callable[[Sequence[str]], tuple[list[str], dict[str, None]]]
"""Gives the columns to read of those there are, and the others."""

FILE_FORMATS: Final = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
_ENCODING: Final = "utf-8-sig"
"""UTF-8, without the mark that some editors begin a file with."""
_SAVED: Final = ("dataset_dict.json", "state.json")
"""Files of which `save_to_disk` leaves one."""


def read_pairs(source: DataSource, counts: ReadCounts) -> Iterator[PreferencePair]:
    """Yield the usable pairs of a data set in its own order.

    Args:
        source: The data set.
        counts: Counts rows and those dropped, by cause.

    Raises:
        DataError: It is not there, cannot be read, or a row has none of the known forms.
        UsageError: Options do not go with this kind of source.
    """
    rows = _adapted_rows(source, counts)
    first = next(rows, None)
    if first is None:
        return
    rows = chain([first], rows)
    if is_unpaired(first[2]):
        yield from pair_up(rows, counts, source.name, held_out=source.is_held_out)
        return
    for number, place, row in rows:
        responses, causes = read_responses(row, place)
        if source.is_held_out:
            counts.held_out_prompts.update(prompt_id(response.prompt) for response in responses)
        pair = to_pair(responses, causes, number)
        if isinstance(pair, str):
            counts.dropped[pair] += 1
        else:
            yield pair


def _adapted_rows(source: DataSource, counts: ReadCounts) -> Iterator[tuple[int, str, Any]]:
    """Yield (number, location, row with the usual names) of all rows that are not left out."""
    columns = source.columns or {}
    for number, (place, row) in enumerate(islice(_rows(source), source.limit)):
        counts.rows += 1
        found = adapted(row, place, columns, source.transform)
        if found is None and source.transform is not None:
            counts.dropped[LEFT_OUT] += 1
        else:
            yield number, place, found


def _rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    """Yield (location, row)."""
    wanted = partial(_split_columns, source)
    if source.rows is not None:
        yield from given_rows(source.rows, source.name, wanted)
        return
    path = Path(source.id)
    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    if source.data_dir is not None and (path.is_file() or saved):
        raise UsageError(
            f"data_dir: got {source.data_dir!r}, which goes with a data set that has subset "
            f"folders, but {path} is {'one file' if path.is_file() else 'a saved data set'}"
        )
    if path.is_file():
        if source.split != DEFAULT_SPLIT:
            raise UsageError(
                f"split: got {source.split!r}, which goes with a hub or saved data set, but {path} "
                f"is one file"
            )
        yield from _file_rows(path, wanted)
    else:
        rows = _saved_rows(path, source) if saved else _loaded_rows(source, is_here=path.is_dir())
        known, others = wanted(rows.column_names)
        # Without columns there would be no rows, and no row to say which columns are missing.
        for number, row in enumerate(rows.select_columns(known) if known else [{}]):
            yield f"{source.name}, row {number}", others | row


def _split_columns(source: DataSource, names: Sequence[str]) -> tuple[list[str], dict[str, None]]:
    """Return the columns that are read, which a transform needs all, and the names of the others.

    Others may hold what cannot be decoded here, images without their library, say.
    """
    if source.transform is not None:
        return [*names], {}
    read = {*COLUMNS, *(source.columns or {}).values()}
    known = [name for name in names if name in read]
    return known, {name: None for name in names if name not in read}


def _file_rows(path: Path, wanted: Wanted) -> Iterator[tuple[str, Any]]:
    name = path.name.lower()
    try:
        if name.endswith(".jsonl.gz"):
            with gzip.open(path, "rt", encoding=_ENCODING) as file:
                yield from _json_lines(path, file)
        elif name.endswith(".jsonl"):
            with path.open(encoding=_ENCODING) as file:
                yield from _json_lines(path, file)
        elif name.endswith(".json"):
            rows = json.loads(path.read_text(encoding=_ENCODING))
            if not isinstance(rows, list):
                raise DataError(
                    f"{path}: got a JSON {type(rows).__name__}, expected a list of rows"
                )
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))
        elif name.endswith(".csv"):
            with path.open(encoding=_ENCODING, newline="") as file:
                yield from csv_rows(path, file)
        elif name.endswith(".parquet"):
            from pyarrow import parquet

            number = 0
            table = parquet.ParquetFile(path)
            known, others = wanted(table.schema_arrow.names)
            for batch in table.iter_batches(columns=known):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", others | row
                    number += 1
        else:
            raise DataError(
                f"{path}: unknown kind of file, expected one of {', '.join(FILE_FORMATS)}"
            )
    except RecursionError as error:
        raise DataError(f"{path}: cannot be read: its JSON is nested too deep") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        # Covers truncated gzip, undecodable text, bad JSON and pyarrow's ArrowInvalid.
        raise DataError(f"{path}: cannot be read: {error}") from error


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not JSON ({error}). Every line must be one object."
                ) from error


def _saved_rows(path: Path, source: DataSource) -> Any:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: a saved data set that cannot be read: {error}") from error
    if not isinstance(saved, datasets.DatasetDict):
        _require_split(path, None if saved.split is None else str(saved.split), source.split)
        return saved
    if source.split not in saved:
        raise DataError(f"{path}: no split {source.split!r}, it has {', '.join(saved)}")
    return saved[source.split]


def _require_split(path: Path, saved: str | None, asked: str) -> None:
    """Refuse a split for a saved data set that has none or another."""
    if saved is None and asked != DEFAULT_SPLIT:
        raise UsageError(
            f"split {asked!r}: {path} was saved without the name of a split; leave split out, and "
            f"say held_out=true where its pairs are for evaluation alone"
        )
    if saved is not None and saved != asked:
        raise UsageError(f"split: got {asked!r}, but {path} holds {saved!r}; say split={saved}")


def _loaded_rows(source: DataSource, *, is_here: bool) -> Any:
    """Load a data set from the hub, or from a folder with a copy of its repository."""
    looks_local = (
        source.id.lower().endswith(FILE_FORMATS)
        or source.id.startswith(("/", ".", "~"))
        or source.id.count("/") != 1
    )
    if looks_local and not is_here:
        raise DataError(
            f"{source.id}: no such file or folder. Name a {', '.join(FILE_FORMATS)} file, a folder "
            f"with a data set, or a hub id such as Anthropic/hh-rlhf."
        )
    import datasets

    try:
        place = source.id if is_here else hub.find_data(source.id, source.data_dir)
        return datasets.load_dataset(place, data_dir=source.data_dir, split=source.split)
    except Exception as error:
        where = "is not a folder of a data set" if is_here else "is not available from the hub"
        reason = (
            hub_errors.why_no_table(error)
            if is_here
            else hub_errors.why_no_rows(error, source.id, source.data_dir)
        )
        raise DataError(
            f"{source.id}: {where} (data_dir {source.data_dir!r}, split {source.split!r}): {reason}"
        ) from error
