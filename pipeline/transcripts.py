r"""HH-RLHF's transcript form, the text every prompt and answer takes.

A transcript is turns of `\n\nHuman: …` and `\n\nAssistant: …`; its prompt ends with the last
`\n\nAssistant:`, its response is the rest. Source: Bai et al. 2022, "Training a Helpful and
Harmless Assistant with RLHF", and its data set Anthropic/hh-rlhf.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

ASSISTANT: Final = "\n\nAssistant:"
HUMAN: Final = "\n\nHuman:"
SYSTEM: Final = "\n\nSystem:"
TEMPLATE: Final = "\n\nHuman: {prompt}\n\nAssistant:"
CHAT_TEMPLATE: Final = "chat_template"
"""Stands in a manifest for the base's own chat template, in place of `TEMPLATE`."""

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
    """Tell whether a text is a conversation with a turn of the assistant, as HH-RLHF writes it."""
    return text.lstrip().startswith((HUMAN.lstrip(), SYSTEM.lstrip())) and ASSISTANT in text


def canonical(transcript: str) -> str:
    """Return a transcript with one space before each turn's text, and none behind it."""
    return _SPACED_TURN.sub(r"\1 ", transcript).rstrip()


def as_prompt(text: str) -> str:
    """Return a prompt ending in `Assistant:`; a bare user message is put into the template."""
    whole = text.rstrip()
    if whole.endswith(ASSISTANT):
        return whole
    begun = whole.lstrip()
    # A system's turn alone asks for nothing, so a message may begin like one.
    is_begun = begun.startswith(HUMAN.lstrip()) or (
        begun.startswith(SYSTEM.lstrip()) and HUMAN in begun
    )
    return f"\n\n{begun}{ASSISTANT}" if is_begun else TEMPLATE.format(prompt=begun)


def as_response(text: str) -> str:
    """Return an answer as it follows `Assistant:`, that is, after white space."""
    return text if text[:1].isspace() else f" {text}"


def render_messages(messages: Sequence[Mapping[str, str]]) -> str:
    """Render conversational messages (`role`, `content`) as a transcript.

    Raises:
        KeyError: A message has another role than user, assistant or system, or lacks a field.
    """
    return "".join(f"{_TURNS[turn['role']]}{as_response(turn['content'])}" for turn in messages)


def parse_transcript(transcript: str) -> list[dict[str, str]]:
    """Return the messages of a transcript; an open last turn of the assistant is none of them."""
    roles = {turn: role for role, turn in _TURNS.items()}
    turns = list(_TURN.finditer(transcript))
    bounds = [*(turn.start() for turn in turns), len(transcript)]
    messages = [
        {"role": roles[turn.group()], "content": transcript[turn.end() : end].strip()}
        for turn, end in zip(turns, bounds[1:], strict=True)
    ]
    is_open = bool(messages) and messages[-1] == {"role": "assistant", "content": ""}
    return messages[:-1] if is_open else messages
