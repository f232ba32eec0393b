"""Reads sampled answers and their scores from files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import DataError, MAVError
from mav.pipeline.comparison.questions import json_rows, key_of, shown
from mav.pipeline.preferences.prompt_format import Messages, require_prompt

Key = tuple[str, str]
"""The prompt, in one form however it is written, and the answer."""


@dataclass(kw_only=True)
class PromptSamples:
    """The answers to one prompt.

    Attributes:
        prompt: As it stands in the first of the files.
        responses: The different answers, in the order of the files.
    """

    prompt: str | Messages
    responses: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Samples:
    """The answers of files.

    Attributes:
        by_prompt: The answers, by the prompt's key.
        rows: Lines that were read.
        left_out: Lines that give no answer of their own, by cause: `failed`, `empty`, `repeated`.
    """

    by_prompt: dict[str, PromptSamples] = field(default_factory=dict)
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def read_samples(files: Sequence[str]) -> Samples:
    """Read the answers of files, each answer to a prompt once.

    A line has `prompt` (or `messages`) and `response`, or `error`.

    Raises:
        DataError: A file cannot be read, a line is none, or there is no answer.
    """
    found = Samples()
    for name in files:
        for place, row in _rows(Path(name)):
            found.rows += 1
            cause = _take(found, row, place)
            if cause is not None:
                found.left_out[cause] = found.left_out.get(cause, 0) + 1
    if not found.by_prompt:
        raise DataError(f"{', '.join(files)}: no answer among {found.rows:,} lines")
    return found


def _take(found: Samples, row: Any, place: str) -> str | None:
    """Take the answer of a line; return why it is left out, if it is."""
    prompt = _prompt_of(row, place)
    if isinstance(row.get("error"), str):
        return "failed"
    response = row.get("response")
    if not isinstance(response, str):
        raise DataError(f"{place}: got {shown(row)}, expected 'response', a text, or 'error'")
    if not response.strip():
        return "empty"
    samples = found.by_prompt.setdefault(key_of(prompt), PromptSamples(prompt=prompt))
    if response in samples.responses:
        return "repeated"
    samples.responses.append(response)
    return None


def read_scores(path: Path) -> dict[Key, float]:
    """Read the scores of answers, by prompt and answer.

    A line has `prompt` (or `messages`), `response` and `score`, a number; null or no finite number
    is no score. Lines with `error` are skipped.

    Raises:
        DataError: It cannot be read, a line is none, or an answer has two different scores.
    """
    scores: dict[Key, float] = {}
    for place, row in _rows(path):
        key_prompt = key_of(_prompt_of(row, place))
        if isinstance(row.get("error"), str):
            continue
        response, score = row.get("response"), row.get("score")
        if not isinstance(response, str) or "score" not in row:
            raise DataError(f"{place}: got {shown(row)}, expected 'response' and 'score'")
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise DataError(f"{place}: score: got {shown(score)}, expected a number or null")
        if not math.isfinite(score):
            continue
        key = (key_prompt, response)
        if scores.setdefault(key, float(score)) != score:
            raise DataError(
                f"{place}: score: got {score} and before that {scores[key]} for the same answer, "
                f"expected one score for each"
            )
    return scores


def _rows(path: Path) -> list[tuple[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; name one with a JSON line for each answer")
    return [*json_rows(path)]


def _prompt_of(row: Any, place: str) -> str | Messages:
    prompt = row.get("prompt", row.get("messages")) if isinstance(row, Mapping) else None
    if prompt is None:
        raise DataError(f"{place}: got {shown(row)}, expected an object with 'prompt'")
    try:
        return require_prompt(prompt)
    except MAVError as error:
        raise DataError(f"{place}: {error}") from error
