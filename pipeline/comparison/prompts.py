"""The prompts of a comparison: pairs, a file of prompts, AlpacaEval's or MT-Bench's questions."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison.questions import Question, json_rows, of_alpaca_eval, of_mt_bench
from mav.pipeline.decoding.files.prompt_file import read_prompts
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource, parse_source
from mav.pipeline.runtime.json_input import strict_json

_log = logging.getLogger(__name__)

_NONE: Final[frozenset[str]] = frozenset()
Kind = Literal["pairs", "prompts", "alpaca-eval", "mt-bench"]

_DATA_SET: Final = (".jsonl.gz", ".json", ".parquet", ".csv")
_WHAT: Final[dict[Kind, str]] = {
    "pairs": "prompts of preference pairs",
    "prompts": "prompts",
    "alpaca-eval": "instructions of AlpacaEval",
    "mt-bench": "questions of MT-Bench",
}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a comparison, in the order of their source.

    Attributes:
        source: Name of the source.
        kind: What it is.
        questions: The prompts.
        rows: Rows that were read.
        dropped: Rows that gave no prompt, by cause.
        beyond: Keys of prompts beyond the limit, if requested.
    """

    source: str
    kind: Kind
    questions: tuple[Question, ...]
    rows: int
    dropped: Mapping[str, int]
    beyond: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over all prompts."""
        texts = [[question.key, *question.follow_ups] for question in self.questions]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Return a one-line description."""
        listed = ", ".join(f"{count} {cause}" for cause, count in sorted(self.dropped.items()))
        return (
            f"{self.source}: {len(self.questions):,} {_WHAT[self.kind]} of {self.rows:,} rows "
            f"read; dropped: {listed or 'none'}"
        )


@dataclass
class _Reading:
    """A source that is being read, and its counts."""

    source: str
    kind: Kind
    rows: Iterator[Question | None]
    counts: ReadCounts = field(default_factory=ReadCounts)


def read_questions(given: str, limit: int | None, *, beyond: bool = False) -> Prompts:
    """Read the prompts of a comparison.

    Args:
        given: A file or a data set, as `parse_source` reads it. A `.jsonl` file is prompts,
            pairs, or MT-Bench's questions, by the fields of its first line; `.json` is pairs or
            AlpacaEval's instructions; any other file, unless a data set, has one prompt per line.
        limit: Most prompts, the first in stored order; None for all.
        beyond: Whether to read past the limit, for `Prompts.beyond`.

    Raises:
        DataError: It cannot be read, or has no prompt.
        UsageError: The options after its name are invalid.
    """
    source = parse_source(given, DataSource(id=""), option="prompts")
    reading = _begin(source)
    kept: dict[str, Question] = {}
    for question in reading.rows:
        if question is None:
            continue
        if kept.setdefault(question.key, question) is not question:
            reading.counts.dropped["repeated_prompt"] += 1
        if len(kept) == limit:
            break
    rows, dropped = reading.counts.rows, dict(sorted(reading.counts.dropped.items()))
    if not kept:
        listed = ", ".join(f"{count} {cause}" for cause, count in dropped.items())
        raise DataError(
            f"{reading.source}: no usable prompt among {rows:,} rows (dropped: {listed or 'none'})"
        )
    prompts = Prompts(
        source=reading.source,
        kind=reading.kind,
        questions=tuple(kept.values()),
        rows=rows,
        dropped=dropped,
        beyond=frozenset(one.key for one in reading.rows if one is not None) if beyond else _NONE,
    )
    _log.log(logging.WARNING if prompts.dropped else logging.INFO, prompts.describe())
    return prompts


def _begin(source: DataSource) -> _Reading:
    path = Path(source.id)
    name = path.name.lower()
    if not path.is_file() or name.endswith(_DATA_SET):
        first = _first_of_list(path) if path.is_file() and name.endswith(".json") else {}
        if "instruction" in first and "chosen" not in first:
            return _counted(source, "alpaca-eval", json_rows(path), of_alpaca_eval)
        return _of_pairs(source)
    first = _first_line(path) if name.endswith(".jsonl") else {}
    if "chosen" in first:
        return _of_pairs(source)
    if "turns" in first:
        return _counted(source, "mt-bench", json_rows(path), of_mt_bench)
    if "instruction" in first:
        return _counted(source, "alpaca-eval", json_rows(path), of_alpaca_eval)
    return _of_prompt_file(source, path)


def _of_pairs(source: DataSource) -> _Reading:
    reading = _Reading(source=source.stored_id, kind="pairs", rows=iter(()))
    pairs = read_pairs(source, reading.counts)
    reading.rows = (Question(prompt=pair.asked, id=pair.source_row) for pair in pairs)
    return reading


def _of_prompt_file(source: DataSource, path: Path) -> _Reading:
    reading = _Reading(source=source.stored_id, kind="prompts", rows=iter(()))

    def rows() -> Iterator[Question | None]:
        for line in islice(read_prompts(path), source.limit):
            reading.counts.rows += 1
            if line.error is not None:
                raise DataError(f"{path}, line {line.number}: {line.error}")
            if line.alpha is not None:
                raise DataError(
                    f"{path}, line {line.number}: got its own alpha; leave it out, since every "
                    f"prompt is answered at each of `alphas`"
                )
            if isinstance(line.prompt, str) and not line.prompt.strip():
                reading.counts.dropped["empty_prompt"] += 1
                yield None
            else:
                yield Question(prompt=line.prompt, id=line.number)

    reading.rows = rows()
    return reading


def _counted(
    source: DataSource, kind: Kind, rows: Iterator[tuple[str, Any]], read: Any
) -> _Reading:
    reading = _Reading(source=source.stored_id, kind=kind, rows=iter(()))

    def questions() -> Iterator[Question | None]:
        for number, (place, row) in enumerate(islice(rows, source.limit)):
            reading.counts.rows += 1
            question = read(row, place, number)
            if isinstance(question, str):
                reading.counts.dropped[question] += 1
                yield None
            else:
                yield question

    reading.rows = questions()
    return reading


def _first_of_list(path: Path) -> Mapping[str, Any]:
    """Return the first row of a JSON list, if it is an object."""
    _, row = next(json_rows(path), ("", None))
    return row if isinstance(row, Mapping) else {}


def _first_line(path: Path) -> Mapping[str, Any]:
    """Return the first of JSON lines, if it is an object; its reader reports anything else."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            row = strict_json(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return {}
    return row if isinstance(row, Mapping) else {}
