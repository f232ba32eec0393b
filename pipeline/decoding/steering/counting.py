"""Counts the tokens of responses at which heads were added, whatever becomes of the rows."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import LogitsProcessor

from mav.pipeline.decoding.aligned_lm import AlignedLM


class SteeredTokens(LogitsProcessor):  # type: ignore[misc]
    """Notes for each row of `generate()` whether its next token is steered; changes no scores.

    It is noted by what the row has said so far, since beams move to other rows.
    """

    def __init__(self, aligned: AlignedLM, requests: int, prompt_width: int) -> None:
        """Begin with nothing noted.

        Args:
            aligned: Base and heads.
            requests: Number of prompts, each of which has as many rows.
            prompt_width: Tokens of each row before its response.
        """
        self._aligned = aligned
        self._requests = requests
        self._prompt_width = prompt_width
        self._steered: set[tuple[int, bytes]] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the rows; return the scores."""
        flags = self._aligned.steered_last(len(input_ids))
        if any(flags):
            each = len(input_ids) // self._requests
            said = input_ids[:, self._prompt_width :].tolist()
            for row, steered in enumerate(flags):
                if steered:
                    self._steered.add((row // each, _digest(said[row])))
        return scores

    def count(self, request: int, tokens: Sequence[int]) -> int:
        """Return how many tokens of a response were steered.

        Args:
            request: Number of its prompt.
            tokens: Its tokens.
        """
        return sum(
            (request, _digest(tokens[:place])) in self._steered for place in range(len(tokens))
        )


def _digest(tokens: Sequence[int]) -> Any:
    return hashlib.blake2b(np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=16).digest()


def said_of(steered: int, tokens: int) -> str:
    """Return a line on the share of tokens that were steered."""
    share = 100 * steered / tokens if tokens else 0.0
    return f"{steered:,} of {tokens:,} tokens steered ({share:.0f} %)"
