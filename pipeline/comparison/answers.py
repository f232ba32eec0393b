"""Reads another system's answers from a file and matches them to the prompts."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import DataError, MAVError
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.questions import json_rows, key_of, shown
from mav.pipeline.comparison.records import Answer, AnswerKey, measured, whole_number
from mav.pipeline.preferences.prompt_format import require_prompt

_log = logging.getLogger(__name__)

_HEADER: Final = {"prompts", "base", "form", "alpha"}
"""Fields of the first line of a file that `generate_answers` wrote."""


@dataclass(frozen=True, kw_only=True)
class ReadAnswers:
    """The answers of a file.

    Attributes:
        answers: Sorted by prompt, sample and turn.
        base: Digest of the weights of the base that KL and log-probabilities refer to; None if
            unknown.
        beyond: Number of answers to prompts beyond the limit.
    """

    answers: tuple[Answer, ...]
    base: str | None
    beyond: int


def read_answers(name: str, path: Path, prompts: Prompts) -> ReadAnswers:
    """Read a system's answers to the prompts.

    A file is JSON lines or, with the ending `.json`, a list. Each row has the `prompt` (or
    `messages`) and `response`, as `mav generate --output` and a comparison write them, or
    `instruction` and `output`, as AlpacaEval does. Several answers to a prompt are samples. Answers
    to later turns of a conversation have a `turn`, counted from 0.

    Args:
        name: Name of the system, for messages.
        path: The file.
        prompts: The prompts, including those beyond the limit.

    Raises:
        DataError: It cannot be read, or has answers to other prompts, or no answer to these.
    """
    numbers = {question.key: number for number, question in enumerate(prompts.questions)}
    answers: dict[AnswerKey, Answer] = {}
    others: list[str] = []
    rows = beyond = 0
    base = None
    samples: dict[tuple[int, int], int] = {}
    for place, row in _rows(path):
        if not rows and not samples and isinstance(row, Mapping) and row.keys() >= _HEADER:
            base = str(row["base"])
            continue
        rows += 1
        key, turn, answer = _parse(row, place)
        number = numbers.get(key)
        if number is None or turn >= prompts.questions[number].turns:
            if key in prompts.beyond:
                beyond += 1
            else:
                others.append(key)
            continue
        sample = samples[number, turn] = samples.get((number, turn), -1) + 1
        place_of = AnswerKey(number, sample, turn)
        answers[place_of] = replace(answer, key=place_of)
    if others or not answers:
        raise _for_other_prompts(path, others, rows, prompts)
    if beyond:
        _log.info(f"{name}: {beyond:,} answers are to prompts beyond `limit`, and are not used")
    return ReadAnswers(
        answers=tuple(answers[key] for key in sorted(answers)), base=base, beyond=beyond
    )


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a file with a system's answers")
    return json_rows(path)


def _parse(row: Any, place: str) -> tuple[str, int, Answer]:
    """Return a row's prompt, turn and answer."""
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: got {shown(row)}, expected an object with prompt and response")
    prompt = row.get("prompt", row.get("messages", row.get("instruction")))
    response = row.get("response", row.get("output"))
    error = row.get("error")
    if prompt is None or not (isinstance(response, str) or isinstance(error, str)):
        raise DataError(
            f"{place}: got {sorted(row)}, expected 'prompt' and 'response', or 'instruction' and "
            f"'output', with text as the answer"
        )
    if "instruction" in row and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        key = key_of(require_prompt(prompt))
        turn = whole_number(row, "turn") if "turn" in row else 0
        measures = measured(row)
    except (MAVError, ValueError) as problem:
        raise DataError(f"{place}: {problem}") from problem
    failed = error if isinstance(error, str) else None
    text = response if isinstance(response, str) and failed is None else ""
    return key, turn, Answer(key=AnswerKey(0), response=text, error=failed, **measures)


def _for_other_prompts(path: Path, others: list[str], rows: int, prompts: Prompts) -> DataError:
    if not rows:
        return DataError(f"{path}: no answer in it")
    first = others[0] if others else ""
    start = " ".join(first.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:").split())
    example = f", such as {start[:60]!r}" if start else ""
    if not others:
        return DataError(
            f"{path}: none of its {rows:,} answers belongs to one of the "
            f"{len(prompts.questions):,} prompts of {prompts.source} within `limit`; raise it"
        )
    return DataError(
        f"{path}: {len(others):,} of its {rows:,} answers are to other prompts{example}; expected "
        f"answers to the prompts of {prompts.source}. Give the `prompts` they were made for, or "
        f"leave them out of the file."
    )
