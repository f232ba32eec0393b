"""The judging prompt, and the verdict at the end of a reply to it."""

import re
from pathlib import Path
from typing import Final, Literal

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.messages import Messages
from mav.pipeline.preferences.prompt_format import require_prompt
from mav.pipeline.preferences.transcripts import messages_of

Verdict = Literal["A", "B", "tie"]

_SHIPPED: Final = Path(__file__).with_name("judge_prompt.txt")
_PLACES: Final = ("{conversation}", "{answer_a}", "{answer_b}")
_VERDICT: Final = re.compile(r"\W*verdict\W+(a|b|tie)\W*", re.IGNORECASE)
_MEANT: Final[dict[str, Verdict]] = {"a": "A", "b": "B", "tie": "tie"}


def load_judge_prompt(path: Path | None = None) -> str:
    """Return a judging prompt.

    Args:
        path: A user's file; None for MAV's own.

    Raises:
        DataError: It cannot be read, or lacks a placeholder.
    """
    place = _SHIPPED if path is None else path
    try:
        template = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: cannot be read as a judging prompt: {error}") from error
    missing = [name for name in _PLACES if name not in template]
    if missing:
        raise DataError(
            f"{place}: {', '.join(missing)} missing, expected each of {', '.join(_PLACES)} where "
            f"that text belongs"
        )
    return template


def fill(template: str, prompt: str | Messages, answer_a: str, answer_b: str) -> str:
    """Return a judging prompt with its placeholders replaced by the texts, verbatim.

    Args:
        template: As `load_judge_prompt` returns it.
        prompt: Messages, a transcript, or a user's words.
        answer_a: The first answer.
        answer_b: The second answer.

    Raises:
        DataError: The prompt is invalid.
    """
    conversation = "\n\n".join(
        f"{turn['role'].capitalize()}: {turn['content'].strip()}"
        for turn in messages_of(require_prompt(prompt))
    )
    texts = dict(zip(_PLACES, (conversation, answer_a.strip(), answer_b.strip()), strict=True))
    # All at once, because an answer may contain a placeholder.
    return re.sub("|".join(map(re.escape, _PLACES)), lambda place: texts[place[0]], template)


def read_verdict(reply: str) -> Verdict | None:
    """Return the verdict in the last line of a reply, or None.

    Punctuation around its words does not matter. A reply with two different verdicts has none.
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    matches = [_VERDICT.fullmatch(line) for line in lines]
    if not lines or matches[-1] is None:
        return None
    verdicts = {_MEANT[match[1].lower()] for match in matches if match is not None}
    return verdicts.pop() if len(verdicts) == 1 else None
