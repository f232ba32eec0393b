"""Tokens and their log-probabilities in the form of the chat API."""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NotRequired, TypedDict

from mav.pipeline.decoding.logprobs import LogProbs

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOWEST: Final = -9999.0
"""Sent instead of minus infinity, which JSON does not have, as other servers do."""


class TokenLogprob(TypedDict):
    """A token as OpenAI's chat API describes it, with `base_logprob` added.

    Attributes:
        token: Its text; part of a character is the replacement character.
        logprob: Natural logarithm of its probability under base and head; None for the first token
            of a prompt, which nothing predicts.
        bytes: Its bytes, or None if the tokenizer does not give them.
        base_logprob: Natural logarithm of its probability under the base alone; None likewise.
        top_logprobs: The most probable tokens in its place, without the last two fields.
    """

    token: str
    logprob: float | None
    bytes: list[int] | None
    base_logprob: NotRequired[float | None]
    top_logprobs: NotRequired[list["TokenLogprob"]]


def token_logprob(tokenizer: Any, token: int, logprobs: LogProbs) -> TokenLogprob:
    """Describe a generated token."""
    return {
        **_described(tokenizer, token, logprobs.aligned),
        "base_logprob": _finite(logprobs.base),
        "top_logprobs": [_described(tokenizer, other, value) for other, value in logprobs.top],
    }


def prompt_logprobs(
    tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[LogProbs]
) -> tuple[TokenLogprob, ...]:
    """Describe a prompt's tokens, given the log-probabilities of all but the first."""
    first: TokenLogprob = {
        **_described(tokenizer, tokens[0], 0.0),
        "logprob": None,
        "base_logprob": None,
        "top_logprobs": [],
    }
    others = zip(tokens[1:], logprobs, strict=True)
    return (first, *(token_logprob(tokenizer, token, found) for token, found in others))


def token_name(token: TokenLogprob) -> str:
    r"""Return a token's text, or its bytes as `bytes:\xe2` if it is part of a character.

    This is how OpenAI's completions API names tokens.
    """
    if "\N{REPLACEMENT CHARACTER}" not in token["token"] or token["bytes"] is None:
        return token["token"]
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token["bytes"])


def _described(tokenizer: Any, token: int, logprob: float) -> TokenLogprob:
    text: str = tokenizer.decode([token])
    return {
        "token": text,
        "logprob": _finite(logprob),
        "bytes": _bytes_of(tokenizer, token, text),
    }


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LOWEST


def _bytes_of(tokenizer: Any, token: int, text: str) -> list[int] | None:
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return list(text.encode())
    symbol = tokenizer.convert_ids_to_tokens(token)
    if symbol is None:
        return None
    if byte := _BYTE.fullmatch(symbol):
        return [int(byte[1], 16)]
    if all(character in _byte_level() for character in symbol):
        return [_byte_level()[character] for character in symbol]
    return None


@cache
def _byte_level() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Source: `bytes_to_unicode` of GPT-2's encoder.py: printable bytes stand for themselves, the
    others are mapped to characters from 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + index): byte for index, byte in enumerate(others)},
    }
