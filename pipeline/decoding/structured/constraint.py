"""What keeps one response to a grammar, token by token.

Shape legend: V vocabulary.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llguidance import LLMatcher

_LARGEST: Final = 1e30
"""Bound of logits, so that a token that is allowed can always be chosen."""


class Constraint:
    """Follows one response.

    Attributes:
        finished: Whether nothing may follow the text so far.
        error: Why the response cannot go on, or None.
    """

    def __init__(
        self, matcher: "LLMatcher", reserved: Collection[int], ends: Collection[int]
    ) -> None:
        """Begin a response; `Grammar.begin` makes these.

        Args:
            matcher: Its own matcher, at the beginning.
            reserved: Tokens that are never text.
            ends: Tokens that end the response.
        """
        self.finished = False
        self.error: str | None = None
        self._matcher, self._reserved, self._ends = matcher, sorted(reserved), sorted(ends)

    def masked(self, logits: Tensor) -> Tensor:
        """Return logits [V] in which tokens that may not come are at minus infinity.

        Others are as they were, if they are numbers. Where no token may come, all stay.
        """
        allowed = allowed_tokens(self._matcher)
        allowed[self._reserved] = False
        if self._matcher.is_accepting():
            allowed[self._ends] = True
        allowed = allowed[: len(logits)]
        if self._matcher.is_error() or not allowed.any():
            self.error = "the schema is too complex, or no token of the base goes on with its text"
            return logits
        finite = logits.nan_to_num(-_LARGEST, _LARGEST, -_LARGEST).clamp(-_LARGEST, _LARGEST)
        return finite.masked_fill(~allowed.to(logits.device), -torch.inf)

    def push(self, token: int) -> None:
        """Take the token that was chosen."""
        if self.error is None and token not in self._ends:
            self._matcher.consume_token(token)
            self.finished = self._matcher.is_stopped() and not self._matcher.is_error()


def allowed_tokens(matcher: "LLMatcher") -> Tensor:
    """Return which tokens may come next by a grammar alone, bool [V of the matcher]."""
    return torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8) != 0
