"""Reads a file of prompts: one per line, or JSON lines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.decoding.steering.strengths import Strength, as_strength
from mav.pipeline.preferences.prompt_format import Messages, require_prompt
from mav.pipeline.runtime.json_input import strict_json


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """A prompt of a file, or the reason it cannot be used.

    Attributes:
        number: Of the line, from 1.
        text: The line.
        fields: What it says; a plain text line has the one field `prompt`.
        prompt: The message, messages or transcript.
        alpha: Its own strength, or None.
        error: What is wrong with it, or None.
    """

    number: int
    text: str
    fields: dict[str, Any]
    prompt: str | Messages = ""
    alpha: Strength | None = None
    error: str | None = None


def read_prompts(path: Path, heads: Sequence[str] = ()) -> list[PromptLine]:
    """Read every line that is not empty; a wrong one carries its error.

    In a `.jsonl` file each is an object with `prompt`, a text, or `messages`, a list of objects
    with `role` and `content`; and, if wanted, `alpha`, a number or a schedule's text, or an object
    of these by head.

    Args:
        path: The file.
        heads: Names of the heads; none of one head without a name.

    Raises:
        DataError: The file cannot be read or has no line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError(f"{path}: no prompt in it")
    if path.suffix != ".jsonl":
        return [
            PromptLine(number=n, text=line, fields={"prompt": line}, prompt=line)
            for n, line in numbered
        ]
    return [_parse(number, line, heads) for number, line in numbered]


def require_sound(lines: Sequence[PromptLine], path: Path) -> None:
    """Refuse lines that cannot be answered, for output that has no place for errors.

    Raises:
        DataError: The first of them.
    """
    for line in lines:
        if line.error is not None:
            raise DataError(f"{path}, line {line.number}: {line.error}")


def _parse(number: int, line: str, heads: Sequence[str]) -> PromptLine:
    begun = PromptLine(number=number, text=line, fields={})
    try:
        fields = strict_json(line)
    except ValueError as error:
        return replace(begun, error=f"got {_shown(line)}, expected JSON: {error}")
    if not isinstance(fields, dict):
        return replace(begun, error=f"got {_shown(line)}, expected an object")
    begun = replace(begun, fields=fields)
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str) == isinstance(messages, list):
        wrong = f"got {_shown(line)}, expected either 'prompt', a text, or 'messages', a list"
        return replace(begun, error=wrong)
    asked = prompt if isinstance(prompt, str) else messages
    assert asked is not None
    try:
        require_prompt(asked)
        alpha = _alpha(fields.get("alpha"), heads)
    except (DataError, UsageError) as error:
        return replace(begun, error=str(error))
    return replace(begun, prompt=asked, alpha=alpha)


def _shown(line: str) -> str:
    return repr(line if len(line) <= 60 else f"{line[:59]}…")


def _alpha(value: Any, heads: Sequence[str]) -> Strength | None:
    if value is None:
        return None
    each = value.values() if isinstance(value, dict) else [value]
    if all(isinstance(one, int | float | str) and not isinstance(one, bool) for one in each):
        return as_strength(value, heads)
    raise UsageError(f"alpha: got {value!r}, expected a number or a schedule such as '0:2,64:0.5'")
