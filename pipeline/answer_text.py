"""The text of an answer while its tokens come: whole characters, cut before a stop string."""

from collections.abc import Sequence
from typing import Any


class AnswerText:
    """Turns tokens into text piece by piece; what was given out is never taken back.

    Attributes:
        stopped: Whether a stop string has come; nothing follows it.
        offset: Where in the answer's text the latest token begins.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], *, strip: bool = False) -> None:
        """Begin an answer.

        Args:
            tokenizer: The base's.
            stops: Strings that end the answer and are no part of it.
            strip: Leave out white space at the beginning.
        """
        self.stopped = False
        self.offset = 0
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._strip = strip
        self._tokens: list[int] = []
        # Text of the tokens before `given` is certain, and so are `ahead` characters after it.
        self._context = self._given = self._ahead = 0
        self._held = ""
        self._out_length = 0

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain, which may be empty."""
        begin, follows_part = self._length, self._given < len(self._tokens)
        self._tokens.append(token)
        new = self._undelivered()
        # Bytes of a character that is not complete come out as replacement characters.
        certain = new.rstrip("\N{REPLACEMENT CHARACTER}")
        if certain != new:
            self._ahead += len(certain)
        elif new:
            # Tokens without text, such as special ones, are no context to decode others in.
            self._context, self._given, self._ahead = self._given, len(self._tokens), 0
        out = self._release(certain)
        self.offset = begin
        if follows_part:
            # Its text came together with that of the tokens before it.
            own = self._decode([token]).strip("\N{REPLACEMENT CHARACTER}")
            self.offset = max(begin, self._length - len(own))
        return out

    @property
    def _length(self) -> int:
        """Length of the text so far, what is held back included."""
        return self._out_length + len(self._held)

    def finish(self) -> str:
        """Return what was held back, when no token follows."""
        if self.stopped:
            return ""
        rest, self._held = self._held + self._undelivered(), ""
        return self._out(rest)

    def _undelivered(self) -> str:
        # Decoded with the tokens before: whether a word begins with a space depends on them.
        known = self._decode(self._tokens[self._context : self._given])
        whole = self._decode(self._tokens[self._context :])
        return whole[len(known) + self._ahead :]

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
            self._held = ""
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
        self._out_length += len(text)
        return text
