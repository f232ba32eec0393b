r"""HH-RLHF's transcript format: parsing and rendering.

A transcript is turns of `\n\nHuman: …` and `\n\nAssistant: …`; its prompt ends with the last
`\n\nAssistant:`, its response is the rest. Source: Bai et al. 2022, "Training a Helpful and
Harmless Assistant with RLHF", and its data set Anthropic/hh-rlhf.
"""

import re
from typing import Final

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.messages import Messages

ASSISTANT: Final = "\n\nAssistant:"
HUMAN: Final = "\n\nHuman:"
SYSTEM: Final = "\n\nSystem:"
TEMPLATE: Final = "\n\nHuman: {prompt}\n\nAssistant:"
CHAT_TEMPLATE: Final = "chat_template"
"""Stands in a manifest for the base's own chat template, instead of `TEMPLATE`."""

_TURNS: Final = {"user": HUMAN, "assistant": ASSISTANT, "system": SYSTEM}
_TURN: Final = re.compile("|".join(map(re.escape, _TURNS.values())))
_SPACED_TURN: Final = re.compile(rf"\s*({_TURN.pattern})\s*")


def split_transcript(transcript: str) -> tuple[str, str] | None:
    """Split into prompt, through the last `Assistant:`, and response; None without such a turn."""
    at = transcript.rfind(ASSISTANT)
    if at < 0:
        return None
    end = at + len(ASSISTANT)
    return transcript[:end], transcript[end:]


def is_transcript(text: str) -> bool:
    """Return whether a text is a conversation in HH-RLHF's format, with an assistant turn."""
    return text.lstrip().startswith((HUMAN.lstrip(), SYSTEM.lstrip())) and ASSISTANT in text


def canonical(transcript: str) -> str:
    """Return a transcript with one space before each turn's text, and none after it."""
    return _SPACED_TURN.sub(r"\1 ", transcript).rstrip()


def transcript_of(prompt: str | Messages) -> str:
    """Return a prompt as a transcript that ends in `Assistant:`.

    Args:
        prompt: A user's message, a transcript with or without that ending, or messages.
    """
    if not isinstance(prompt, str):
        return render_messages(prompt) + ASSISTANT
    whole = prompt.rstrip()
    if whole.endswith(ASSISTANT):
        return whole
    begun = whole.lstrip()
    return f"\n\n{begun}{ASSISTANT}" if _is_begun(begun) else TEMPLATE.format(prompt=begun)


def messages_of(prompt: str | Messages) -> Messages:
    """Return the messages of a prompt.

    Only a text that begins as a transcript, or ends in `Assistant:`, is taken apart; any other is
    one user message, even if it quotes a transcript.

    Args:
        prompt: As `transcript_of` takes it.

    Raises:
        DataError: A transcript has text before its first turn.
    """
    if not isinstance(prompt, str):
        return prompt
    text = prompt.strip()
    if not _is_begun(text) and not prompt.rstrip().endswith(ASSISTANT):
        return [{"role": "user", "content": text}]
    transcript = transcript_of(prompt)
    first = _TURN.search(transcript)
    if first is None or transcript[: first.start()].strip():
        raise DataError(
            f"prompt: got a transcript that begins with {transcript[:40]!r}, expected "
            f"{HUMAN!r} or {SYSTEM!r}"
        )
    return parse_transcript(transcript)


def as_response(text: str) -> str:
    """Return a response as it follows `Assistant:`, that is, after white space."""
    return text if text[:1].isspace() else f" {text}"


def render_messages(messages: Messages) -> str:
    """Render messages as a transcript, their contents stripped of white space."""
    return "".join(f"{_TURNS[turn['role']]} {turn['content'].strip()}" for turn in messages)


def parse_transcript(transcript: str) -> list[dict[str, str]]:
    """Return the messages of a transcript; an open last assistant turn is left out."""
    roles = {turn: role for role, turn in _TURNS.items()}
    turns = list(_TURN.finditer(transcript))
    bounds = [*(turn.start() for turn in turns), len(transcript)]
    messages = [
        {"role": roles[turn.group()], "content": transcript[turn.end() : end].strip()}
        for turn, end in zip(turns, bounds[1:], strict=True)
    ]
    is_open = bool(messages) and messages[-1] == {"role": "assistant", "content": ""}
    return messages[:-1] if is_open else messages


def _is_begun(text: str) -> bool:
    """Return whether a text, stripped of white space, begins like a transcript."""
    # A system's turn alone asks for nothing, so a message may begin like one.
    return text.startswith(HUMAN.lstrip()) or (text.startswith(SYSTEM.lstrip()) and HUMAN in text)
