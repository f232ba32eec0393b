"""The text of an answer while its tokens come: whole characters, cut before a stop string."""

from collections.abc import Sequence
from typing import Any


class AnswerText:
    """Turns tokens into text piece by piece; what was given out is never taken back.

    Attributes:
        stopped: Whether a stop string has come; nothing follows it.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], *, strip: bool = False) -> None:
        """Begin an answer.

        Args:
            tokenizer: The base's.
            stops: Strings that end the answer and are no part of it.
            strip: Leave out white space at the beginning.
        """
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._strip = strip
        self._tokens: list[int] = []
        self._context = self._given = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain, which may be empty."""
        self._tokens.append(token)
        # Decoded with the tokens before it: whether a word begins with a space depends on them.
        known = self._decode(self._tokens[self._context : self._given])
        whole = self._decode(self._tokens[self._context :])
        if whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""  # bytes of a character that is not complete
        self._context, self._given = self._given, len(self._tokens)
        return self._release(whole[len(known) :])

    def finish(self) -> str:
        """Return what was held back, when no token follows."""
        if self.stopped:
            return ""
        known = self._decode(self._tokens[self._context : self._given])
        self._held += self._decode(self._tokens[self._context :])[len(known) :]
        rest, self._held = self._held, ""
        return self._out(rest)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._out(held[: min(found)])
        keep = max(
            (
                length
                for stop in self._stops
                for length in range(1, len(stop))
                if held.endswith(stop[:length])
            ),
            default=0,
        )
        cut = len(held) - keep
        self._held = held[cut:]
        return self._out(held[:cut])

    def _out(self, text: str) -> str:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return text
