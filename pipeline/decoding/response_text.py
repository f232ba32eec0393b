"""Incremental decoding of a response: complete characters, cut before a stop text.

Special tokens have no text in a response, and yet a stop text may be one, or hold some. So what is
held back is kept in units: a character each, or the id of a special token.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

Unit = str | int


class ResponseText:
    """Decodes tokens incrementally; text once returned is final.

    Attributes:
        stopped: Whether a stop text has come; nothing follows it.
        offset: Where in the response's text the latest token begins.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], *, strip: bool = False) -> None:
        """Begin a response.

        Args:
            tokenizer: The base's.
            stops: Texts that end the response and are not part of it. What they name of special
                tokens is met by these tokens, and by the same characters in the response's text.
            strip: Leave out white space at the beginning.
        """
        self.stopped = False
        self.offset = 0
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._special = special_tokens(tokenizer) if stops else {}
        parsed = [_units(stop, self._special) for stop in self._stops]
        self._special_stops = [
            stop for stop in parsed if any(isinstance(unit, int) for unit in stop)
        ]
        self._strip = strip
        self._tokens: list[int] = []
        # Text of the tokens before `given` is certain, and so are `ahead` characters after it.
        self._context = self._given = self._ahead = 0
        self._held: list[Unit] = []
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
            # Tokens without text, such as special ones, give no context to decode others in.
            self._context, self._given, self._ahead = self._given, len(self._tokens), 0
        out = self._release(certain, new[len(certain) :], token)
        self.offset = begin
        if follows_part:
            # Its text came together with that of the tokens before it.
            own = self._decode([token]).strip("\N{REPLACEMENT CHARACTER}")
            self.offset = max(begin, self._length - len(own))
        return out

    def finish(self) -> str:
        """Return what was held back, when no token follows."""
        if self.stopped:
            return ""
        rest, self._held = _shown(self._held) + self._undelivered(), []
        return self._out(rest)

    def copy(self) -> "ResponseText":
        """Return another one that goes on from here by itself."""
        other = copy.copy(self)
        other._tokens, other._held = [*self._tokens], [*self._held]
        return other

    @property
    def _length(self) -> int:
        """Length of the text so far, what is held back included."""
        return self._out_length + len(_shown(self._held))

    def _undelivered(self) -> str:
        # Decoded with the tokens before: whether a word begins with a space depends on them.
        known = self._decode(self._tokens[self._context : self._given])
        whole = self._decode(self._tokens[self._context :])
        return whole[len(known) + self._ahead :]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _release(self, certain: str, broken: str, token: int) -> str:
        """Return the text that is final after a token, given its text and what is incomplete."""
        if self.stopped:
            return ""
        held = [*self._held, *certain]
        special = token in self._special
        # A character that a special token breaks off stands before that token.
        ended = [*held, *broken, token] if special else held
        cut = self._first_stop(ended)
        if cut is not None:
            self.stopped = True
            self._held = []
            return self._out(_shown(ended[:cut]))
        if special:
            held.append(token)
        cut = self._first_that_may_begin_a_stop(held)
        self._held = held[cut:]
        return self._out(_shown(held[:cut]))

    def _first_stop(self, units: Sequence[Unit]) -> int | None:
        """Return where the first stop text begins, or None."""
        text, places = _shown(units), _places(units)
        starts = [places[at] for at in (text.find(stop) for stop in self._stops) if at >= 0]
        for stop in self._special_stops:
            starts += [
                at
                for at in range(len(units) - len(stop) + 1)
                if tuple(units[at : at + len(stop)]) == stop
            ]
        return min(starts, default=None)

    def _first_that_may_begin_a_stop(self, units: Sequence[Unit]) -> int:
        """Return the index from which units may be part of a stop text, or their number."""
        text, places = _shown(units), _places(units)
        places = [
            places[-length]
            for stop in self._stops
            for length in range(1, len(stop))
            if text.endswith(stop[:length])
        ]
        places += [
            len(units) - length
            for stop in self._special_stops
            for length in range(1, min(len(stop), len(units) + 1))
            if tuple(units[-length:]) == stop[:length]
        ]
        return min(places, default=len(units))

    def _out(self, text: str) -> str:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        self._out_length += len(text)
        return text


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that decoding leaves out of a text, and how each is written."""
    texts = {
        int(token): str(added.content)
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special
    }
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return texts | {int(token): str(text) for token, text in named}


def _units(stop: str, special: dict[int, str]) -> tuple[Unit, ...]:
    """Return a stop text with its special tokens as ids."""
    by_text = {text: token for token, text in special.items() if text}
    if not by_text:
        return tuple(stop)
    longest_first = sorted(by_text, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", stop)
    return tuple(
        unit
        for piece in pieces
        for unit in ((by_text[piece],) if piece in by_text else tuple(piece))
    )


def _shown(units: Sequence[Unit]) -> str:
    return "".join(unit for unit in units if isinstance(unit, str))


def _places(units: Sequence[Unit]) -> list[int]:
    """Return where among the units each character of their text is."""
    return [at for at, unit in enumerate(units) if isinstance(unit, str)]
