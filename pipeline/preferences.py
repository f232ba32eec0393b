"""Reading preference pairs, from files, saved data sets or the hub, in any of the usual forms.

A row is one of:

- transcripts `{chosen, rejected}`, as Anthropic/hh-rlhf has them;
- `{prompt, chosen, rejected}` texts, as Dahoas/full-hh-rlhf has them;
- either of them with lists of `{role, content}` messages in place of texts, as TRL uses them; a
  text prompt beside whole conversations, as UltraFeedback has it, is understood too.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from cache_schema.errors import DataError, UsageError
from pipeline import hub
from pipeline.data_sources import DEFAULT_SPLIT, DataSource
from pipeline.transcripts import (
    ASSISTANT,
    as_prompt,
    as_response,
    canonical,
    is_transcript,
    render_messages,
    split_transcript,
)

FILE_FORMATS: Final = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_ENCODING: Final = "utf-8-sig"
"""UTF-8, without the mark that some editors begin a file with."""
_SAVED: Final = ("dataset_dict.json", "state.json")
"""Files of which `save_to_disk` leaves one."""


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One comparison: two answers to the same prompt, of which people preferred the first."""

    prompt: str
    chosen: str
    rejected: str
    source_row: int

    @property
    def pair_id(self) -> int:
        """64-bit hash of the three texts; the same pair has the same id in every data set."""
        return _hash64(self.prompt, self.chosen, self.rejected)

    @property
    def prompt_id(self) -> int:
        """64-bit hash of the prompt, by which pairs are held out."""
        return prompt_id(self.prompt)


@dataclass
class ReadCounts:
    """What became of the rows, filled while they are read.

    Attributes:
        rows: Rows read.
        dropped: Those that hold no usable pair, by cause.
        held_out_prompts: Ids of all prompts of a data set for evaluation alone, those of dropped
            rows too.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    held_out_prompts: set[int] = field(default_factory=set)


def read_pairs(source: DataSource, counts: ReadCounts) -> Iterator[PreferencePair]:
    """Yield the usable pairs of a data set in its own order.

    Args:
        source: The data set.
        counts: Counts rows and those dropped, by cause.

    Raises:
        DataError: It is not there, cannot be read, or a row has none of the known forms.
        UsageError: Options do not go with this kind of source.
    """
    for number, (place, row) in enumerate(islice(_rows(source), source.limit)):
        counts.rows += 1
        answers = _read_answers(row, place)
        if source.is_held_out:
            counts.held_out_prompts.update(prompt_id(prompt) for prompt, _ in answers)
        pair = _to_pair(answers, number)
        if isinstance(pair, str):
            counts.dropped[pair] += 1
        else:
            yield pair


def prompt_id(prompt: str) -> int:
    """Return a 64-bit hash of a prompt, the same whatever white space its turns begin or end with.

    Args:
        prompt: A transcript that ends in `Assistant:`.
    """
    return _hash64(canonical(prompt))


def _hash64(*texts: str) -> int:
    digest = hashlib.sha256("\x1f".join(texts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")


def _rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    """Yield (where it stands, row)."""
    path = Path(source.id)
    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    if source.data_dir is not None and (path.is_file() or saved):
        raise UsageError(
            f"data_dir={source.data_dir} goes with a data set that has subset folders, but {path} "
            f"is {'one file' if path.is_file() else 'a saved data set'}"
        )
    if path.is_file():
        if source.split != DEFAULT_SPLIT:
            raise UsageError(
                f"--split {source.split} goes with a hub or saved data set, but {path} is one file"
            )
        yield from _file_rows(path)
    else:
        rows = _saved_rows(path, source) if saved else _loaded_rows(source, is_here=path.is_dir())
        for number, row in enumerate(rows):
            yield f"{source.name}, row {number}", row


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
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
        elif name.endswith(".parquet"):
            from pyarrow import parquet

            number = 0
            for batch in parquet.ParquetFile(path).iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
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


def _saved_rows(path: Path, source: DataSource) -> Iterable[Any]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: a saved data set that cannot be read: {error}") from error
    if not isinstance(saved, datasets.DatasetDict):
        _require_split(path, None if saved.split is None else str(saved.split), source.split)
        return saved  # type: ignore[no-any-return]
    if source.split not in saved:
        raise DataError(f"{path}: no split {source.split!r}, it has {', '.join(saved)}")
    return saved[source.split]  # type: ignore[no-any-return]


def _require_split(path: Path, saved: str | None, asked: str) -> None:
    """Refuse a split that a data set without a choice of splits is not known to be."""
    if saved is None and asked != DEFAULT_SPLIT:
        raise UsageError(
            f"split {asked!r}: {path} was saved without the name of a split; leave split out, and "
            f"say held_out=true where its pairs are for evaluation alone"
        )
    if saved is not None and saved != asked:
        raise UsageError(f"split: got {asked!r}, but {path} holds {saved!r}; say split={saved}")


def _loaded_rows(source: DataSource, *, is_here: bool) -> Iterable[Any]:
    """Load a data set as the hub has them: from there, or from a folder that is a copy of it."""
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
        found = source.id if is_here else hub.find_data(source.id, source.data_dir)
        return datasets.load_dataset(  # type: ignore[no-any-return]
            found, data_dir=source.data_dir, split=source.split
        )
    except Exception as error:
        where = "is no folder of a data set" if is_here else "is not to be had from the hub"
        reason = (
            hub.why_no_table(error)
            if is_here
            else hub.why_no_rows(error, source.id, source.data_dir)
        )
        raise DataError(
            f"{source.id}: {where} (data_dir {source.data_dir!r}, split {source.split!r}): {reason}"
        ) from error


def _read_answers(row: Any, place: str) -> list[tuple[str, str]]:
    """Return (prompt, response) of both answers of a row; fewer where one is no assistant's."""
    try:
        return _answers(row)
    except (KeyError, TypeError, AttributeError) as error:
        got = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"{place}: not a preference pair. Got {got}; expected texts or lists of "
            f"{{role, content}} messages under 'chosen' and 'rejected', with or without 'prompt' "
            f"({type(error).__name__}: {error})."
        ) from error


def _to_pair(answers: list[tuple[str, str]], number: int) -> PreferencePair | str:
    """Return the pair a row holds, or the cause for which it is dropped."""
    if len(answers) < 2:
        return "no_assistant_turn"
    (prompt, chosen), (other_prompt, rejected) = answers
    if prompt != other_prompt:
        return "prompts_differ"
    if not chosen.strip() or not rejected.strip():
        return "empty_response"
    if chosen == rejected:
        return "identical_responses"
    try:
        (prompt + chosen + rejected).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can write but no tokenizer can read.
        return "invalid_unicode"
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, source_row=number)


def _answers(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (prompt, response) of each answer that is an assistant's turn."""
    prompt = row.get("prompt")
    found = []
    for key in ("chosen", "rejected"):
        answer = row[key]
        if isinstance(answer, str):
            if prompt is None or is_transcript(answer):
                parts = split_transcript(answer)
            else:
                parts = (_prompt_text(prompt), as_response(answer))
        elif isinstance(answer, list):
            parts = _split_messages(prompt, answer)
        else:
            raise TypeError(f"{key!r} is {'null' if answer is None else type(answer).__name__}")
        if parts is not None:
            found.append(parts)
    return found


def _split_messages(prompt: Any, answer: list[Mapping[str, str]]) -> tuple[str, str] | None:
    if not answer or answer[-1]["role"] != "assistant":
        return None
    earlier, last = render_messages(answer[:-1]), as_response(answer[-1]["content"])
    if prompt is None:
        if not earlier:
            raise KeyError("prompt")
        return earlier + ASSISTANT, last
    # TRL's answers go on after the prompt; UltraFeedback's are whole conversations, which
    # begin as the prompt does, with the user or the system.
    whole = bool(earlier) and answer[0]["role"] != "assistant"
    begun = "" if whole else _prompt_text(prompt).removesuffix(ASSISTANT)
    return begun + earlier + ASSISTANT, last


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return as_prompt(prompt)
    return render_messages(prompt) + ASSISTANT
