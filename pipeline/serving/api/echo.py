"""The prompt's part of a text completion that begins with it."""

from dataclasses import dataclass
from typing import Any

from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.serving.api.requests import Prompt


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A prompt as it is sent back.

    Attributes:
        text: Its text: as it was given, or that of the token ids, without special tokens.
        offsets: Position in it where each token begins, in characters.
    """

    text: str
    offsets: tuple[int, ...]


def echo_of(tokenizer: Any, prompt: Prompt, tokens: list[int]) -> Echo:
    """Return what is sent back of a prompt.

    Args:
        tokenizer: The base's.
        prompt: A text or token ids.
        tokens: The tokens that the base reads.
    """
    if isinstance(prompt, str) and tokenizer.is_fast:
        found = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        begins = [begin for begin, _ in found["offset_mapping"]]
        # What stands before every text has no place in it.
        return Echo(text=prompt, offsets=(*[0] * (len(tokens) - len(begins)), *begins))
    written, text, offsets = ResponseText(tokenizer, ()), "", []
    for token in tokens:
        text += written.push(token)
        offsets.append(written.offset)
    text += written.finish()
    if isinstance(prompt, str):
        return Echo(text=prompt, offsets=tuple(min(at, len(prompt)) for at in offsets))
    return Echo(text=text, offsets=tuple(offsets))
