"""Rows of a CSV file, whose first line names the columns."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mav.cache_schema.errors import DataError


def csv_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    """Yield (location, row) of a file with a line of names.

    Args:
        path: Its path, for errors.
        file: The file, opened with `newline=""`.

    Raises:
        DataError: A row has more or fewer values than there are names, or quotes are wrong.
    """
    before = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        if len({*names}) < len(names):
            raise DataError(f"{path}: two columns have the same name ({', '.join(names)})")
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if not values:
                continue
            if len(values) != len(names):
                raise DataError(
                    f"{place}: got {len(values)} values, expected {len(names)} "
                    f"({', '.join(names)}); a text with commas or line breaks stands in quotes"
                )
            yield place, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(before)
