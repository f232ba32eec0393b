"""Prompts to decode, from a file: one a line, or JSON lines with an object each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_schema.errors import DataError, UsageError
from pipeline.alpha import AlphaSchedule, as_schedule
from pipeline.prompt_form import Messages


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """A line that is to be answered, or the reason why it cannot be.

    Attributes:
        number: Of the line, from 1.
        fields: What it says; a plain text line has the one field `prompt`.
        prompt: The message, messages or transcript.
        alpha: Its own strength, or None.
        error: What is wrong with it, or None.
    """

    number: int
    fields: dict[str, Any]
    prompt: str | Messages = ""
    alpha: AlphaSchedule | None = None
    error: str | None = None


def read_prompts(path: Path) -> list[PromptLine]:
    """Read every line that is not empty; a wrong one carries its error.

    In a `.jsonl` file each is an object with `prompt`, a text, or `messages`, a list of objects
    with `role` and `content`; and, if wanted, `alpha`, a number or a schedule's text.

    Raises:
        DataError: The file cannot be read or has no line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError(f"{path}: no prompt in it")
    if path.suffix != ".jsonl":
        return [PromptLine(number=n, fields={"prompt": line}, prompt=line) for n, line in numbered]
    return [_parse(number, line) for number, line in numbered]


def require_sound(lines: Sequence[PromptLine], path: Path) -> None:
    """Refuse lines that cannot be answered, for output that has no place for errors.

    Raises:
        DataError: The first of them.
    """
    for line in lines:
        if line.error is not None:
            raise DataError(f"{path}, line {line.number}: {line.error}")


def _parse(number: int, line: str) -> PromptLine:
    try:
        fields = json.loads(line)
    except ValueError as error:
        wrong = f"got {line[:60]!r}, expected JSON: {error}"
        return PromptLine(number=number, fields={}, error=wrong)
    if not isinstance(fields, dict):
        return PromptLine(number=number, fields={}, error=f"got {line[:60]!r}, expected an object")
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str) == isinstance(messages, list):
        wrong = f"got {line[:60]!r}, expected either 'prompt', a text, or 'messages', a list"
        return PromptLine(number=number, fields=fields, error=wrong)
    if messages is not None and not all(isinstance(turn, dict) for turn in messages):
        wrong = "messages: expected objects with 'role' and 'content'"
        return PromptLine(number=number, fields=fields, error=wrong)
    try:
        alpha = _alpha(fields.get("alpha"))
    except UsageError as error:
        return PromptLine(number=number, fields=fields, error=str(error))
    asked = prompt if isinstance(prompt, str) else messages
    assert asked is not None
    return PromptLine(number=number, fields=fields, prompt=asked, alpha=alpha)


def _alpha(value: Any) -> AlphaSchedule | None:
    if isinstance(value, str):
        return AlphaSchedule.parse(value)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return as_schedule(value)
    raise UsageError(f"alpha: got {value!r}, expected a number or a schedule such as '0:2,64:0.5'")
