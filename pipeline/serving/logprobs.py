"""Tokens and their log-probabilities, as sent to clients."""

import math
import re
from functools import cache
from typing import Any, Final

from mav.pipeline.decoding.continuous_batching import LogProbs
from mav.pipeline.serving.jobs import Candidate, TokenDetail

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOWEST: Final = -9999.0
"""In place of minus infinity, which JSON does not have; other servers say the same."""


def token_detail(tokenizer: Any, token: int, logprobs: LogProbs) -> TokenDetail:
    """Return the detail of a token for clients."""
    chosen = _candidate(tokenizer, token, logprobs.aligned)
    return TokenDetail(
        token=chosen.token,
        bytes=chosen.bytes,
        logprob=chosen.logprob,
        base_logprob=_finite(logprobs.base),
        top=tuple(_candidate(tokenizer, other, value) for other, value in logprobs.top),
    )


def _candidate(tokenizer: Any, token: int, logprob: float) -> Candidate:
    text: str = tokenizer.decode([token])
    return Candidate(token=text, bytes=_bytes_of(tokenizer, token, text), logprob=_finite(logprob))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LOWEST


def _bytes_of(tokenizer: Any, token: int, text: str) -> list[int] | None:
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return list(text.encode())
    written = tokenizer.convert_ids_to_tokens(token)
    if written is None:
        return None
    if byte := _BYTE.fullmatch(written):
        return [int(byte[1], 16)]
    if all(sign in _byte_level() for sign in written):
        return [_byte_level()[sign] for sign in written]
    return None


@cache
def _byte_level() -> dict[str, int]:
    """Return the byte each sign of a byte-level vocabulary stands for.

    Source: `bytes_to_unicode` of GPT-2's encoder.py: bytes that print are themselves, the others
    are signs from 256 on.
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printed]
    return {
        **{chr(byte): byte for byte in printed},
        **{chr(256 + at): byte for at, byte in enumerate(others)},
    }
