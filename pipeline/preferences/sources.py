"""Data sets to read pairs from, as the command line names them."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import UsageError
from mav.cache_schema.manifest import source_name
from mav.pipeline.preferences.columns import Transform, parse_columns, require_columns
from mav.pipeline.preferences.given_rows import name_of, require_rows, split_of
from mav.pipeline.runtime.argument_names import NamedArguments
from mav.pipeline.runtime.options import check_options, option

GivenData = Any
"""A `DataSource`, a path or hub id, a `datasets.Dataset` or `IterableDataset`, or a list of
dictionaries; several of these in a tuple or list."""
DEFAULT_SPLIT: Final = "train"
_LIKE_A_FIELD: Final = re.compile(r"\w+=")
_FOR_EVALUATION: Final = ("test", "eval", "valid", "dev", "held")


@dataclass(frozen=True, kw_only=True)
class DataSource(NamedArguments):
    """A data set to read pairs from.

    Attributes:
        id: File, folder, or id on the hub; of rows that are given, a name for them.
        data_dir: Subset folder of a hub data set, such as `harmless-base`.
        split: Split of a hub or saved data set.
        limit: Read only this many rows.
        weight: Its part of a mixture, relative to other sources with a weight; None to keep all.
        held_out: Whether its pairs are for evaluation alone; None to go by the name of the split.
        rows: The rows themselves, instead of files: dictionaries in a list, a `datasets.Dataset`,
            or an `IterableDataset` beside a `limit`.
        columns: Names of columns in the data set, by what they are here: `{"prompt": "question"}`.
        transform: Called with every row, gives one of the usual forms, or None to leave it out.
    """

    id: str = ""
    data_dir: str | None = option(None, help="Subset folder of data sets, such as harmless-base.")
    split: str = option(DEFAULT_SPLIT, help="Split of data sets; a test split is never trained on.")
    limit: int | None = option(
        None, whole=True, at_least=1, help="Read only the first N rows of each data set."
    )
    weight: float | None = None
    held_out: bool | None = None
    rows: Any = field(default=None, repr=False, compare=False)
    columns: Mapping[str, str] | None = option(
        None,
        metavar="OURS=THEIRS,…",
        help="Columns of other names, as in prompt=question,chosen=good,rejected=bad.",
    )
    transform: Transform | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_options(self)
        if self.columns is not None:
            require_columns(self.columns)
        if self.transform is not None and not callable(self.transform):
            raise UsageError(
                f"transform: got {type(self.transform).__name__}, expected a function of a row"
            )
        if self.rows is not None:
            self._take_rows()
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight > 0):
            raise UsageError(f"weight of {self.id}: got {self.weight}, expected more than 0")
        if self.held_out is None and len(self._uses) > 1:
            raise UsageError(
                f"split of {self.id}: got {self.split!r}, of which a part is for training and a "
                f"part for evaluation; name each as a data set of its own, or say held_out=true or "
                f"held_out=false for all of it"
            )

    def _take_rows(self) -> None:
        require_rows(self.rows, self.limit)
        if self.data_dir is not None:
            raise UsageError(
                f"data_dir: got {self.data_dir!r}, which goes with a data set of files, but the "
                f"rows are given"
            )
        if not self.id:
            object.__setattr__(self, "id", name_of(self.rows))
        own = split_of(self.rows)
        if own is not None and self.split == DEFAULT_SPLIT:
            object.__setattr__(self, "split", own)

    @property
    def stored_id(self) -> str:
        """What caches and heads call it: hub id, or name of the file or folder."""
        if self.rows is not None:
            return self.id
        path = Path(self.id)
        if not path.exists():
            return self.id
        return path.name if path.name not in ("", "..") else path.resolve().name

    @property
    def is_held_out(self) -> bool:
        """Whether its pairs are for evaluation only: as given, or by the split's name."""
        return self._uses == {True} if self.held_out is None else self.held_out

    @property
    def _uses(self) -> set[bool]:
        """Of the splits that are put together, as in `train+test[:10%]`: whether for evaluation."""
        return {
            any(word.startswith(_FOR_EVALUATION) for word in re.split("[^a-z]+", part.lower()))
            for part in self.split.split("+")
        }

    @property
    def name(self) -> str:
        """What to call it."""
        return source_name(self.id, self.data_dir, self.split)


def sources_of(given: GivenData) -> tuple[DataSource, ...]:
    """Return data sets that were given in any form.

    Raises:
        UsageError: There is none, or one is of another form.
    """
    is_several = isinstance(given, tuple) or (
        isinstance(given, list) and bool(given) and not isinstance(given[0], Mapping)
    )
    several = [*given] if is_several else [given]
    if not several:
        raise UsageError("data: got none, expected at least one data set")
    return tuple(_source_of(each) for each in several)


def _source_of(given: Any) -> DataSource:
    if isinstance(given, DataSource):
        if not given.id:
            raise UsageError("data: got a DataSource without `id` or `rows`, expected one of them")
        return given
    return DataSource(id=str(given)) if isinstance(given, str | Path) else DataSource(rows=given)


def parse_source(text: str, defaults: DataSource, option: str = "data") -> DataSource:
    """Read `ID` or `ID,data_dir=…,split=…,limit=…,weight=…,held_out=true,columns=a:b+c:d`.

    Args:
        text: What was given.
        defaults: What holds for fields that it does not name.
        option: The option it was given as, for errors.

    Raises:
        UsageError: A field has a value that it cannot have, or is there twice.
    """
    name, *fields = text.split(",")
    # A comma that nothing like a field follows is part of a name.
    while fields and not _LIKE_A_FIELD.match(fields[0]):
        name = f"{name},{fields.pop(0)}"
    if not name:
        raise UsageError(f"{option}: got {text!r}, expected a file, a folder or a hub id")
    given: dict[str, Any] = {}
    for part in fields:
        key, _, value = part.partition("=")
        if key not in _FIELDS:
            raise UsageError(
                f"{option}: {text}: got {part!r}, expected one of "
                f"{', '.join(f'{known}=' for known in _FIELDS)}"
            )
        if key in given:
            raise UsageError(f"{option}: {text}: {key} is there twice")
        try:
            given[key] = _FIELDS[key](value)
        except ValueError as error:
            raise UsageError(f"{option}: {text}: {key}: got {value!r}, {error}") from error
    return dataclasses.replace(defaults, id=name, **given)


def require_weights(sources: Sequence[DataSource]) -> None:
    """Refuse weights unless all sources have one.

    Raises:
        UsageError: With the remedy.
    """
    weighted = [source for source in sources if source.weight is not None]
    if len(weighted) == 1:
        raise UsageError(
            f"weight of {weighted[0].id}: no other data set has one, and weights are relative to "
            f"each other; give one to those that are to be mixed with it"
        )


def _text(value: str) -> str:
    if not value:
        raise ValueError("expected a name")
    return value


def _count(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("expected a number") from None


def _yes_or_no(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("expected true or false")
    return value == "true"


_FIELDS: Final[dict[str, Callable[[str], Any]]] = {
    "data_dir": _text,
    "split": _text,
    "limit": _count,
    "weight": _number,
    "held_out": _yes_or_no,
    "columns": partial(parse_columns, between="+", equals=":"),
}
