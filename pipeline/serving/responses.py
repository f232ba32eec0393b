"""The shapes answers take in OpenAI's API: of a conversation, and of a text that goes on.

Beside what that API has, every token with log-probabilities has a `base_logprob`: what the
base alone gave it.
"""

import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from mav.pipeline.serving.jobs import Begun, Candidate, Piece, TokenDetail


@dataclass(kw_only=True)
class Written:
    """What there is of one answer.

    Attributes:
        text: Its text so far.
        tokens: Number of its tokens.
        finish: Why it ended, or None.
        details: Of its tokens, where they were asked for.
        offsets: Where in the text each of those begins.
    """

    text: str = ""
    tokens: int = 0
    finish: str | None = None
    details: list[TokenDetail] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    _held: deque[tuple[TokenDetail, int]] = field(default_factory=deque)

    def take(self, piece: Piece) -> list[tuple[TokenDetail, int]]:
        """Add a token; return detail and text offset of each token whose text is now final.

        A token's log-probability is sent once its text is final; tokens of a stop string are never
        sent.
        """
        if piece.detail is not None:
            self._held.append((piece.detail, piece.offset))
        self.text += piece.text
        self.tokens += 1
        self.finish = piece.finish
        told = []
        while self._held and (self._held[0][1] < len(self.text) or piece.finish == "length"):
            told.append(self._held.popleft())
        self.details += [detail for detail, _ in told]
        self.offsets += [offset for _, offset in told]
        return told


class AnswerForm(ABC):
    """How answers to one request are written."""

    _PREFIX: str
    _WHOLE: str
    _CHUNK: str

    def __init__(self, begun: Begun, *, wants_logprobs: bool) -> None:
        """Begin.

        Args:
            begun: What is known of the request.
            wants_logprobs: Whether every token comes with log-probabilities.
        """
        self.wants_logprobs = wants_logprobs
        self._begun = begun
        self._id = f"{self._PREFIX}-{uuid.uuid4().hex}"
        self._created = int(time())

    def whole(self, answers: Sequence[Written]) -> dict[str, Any]:
        """Return the body that holds all answers."""
        return {
            **self._head(self._WHOLE),
            "choices": [
                {
                    "index": number,
                    **self._content(answer),
                    "logprobs": self._logprobs(answer.details, answer.offsets),
                    "finish_reason": answer.finish,
                }
                for number, answer in enumerate(answers)
            ],
            "usage": self.usage(answers),
        }

    def usage(self, answers: Sequence[Written]) -> dict[str, int]:
        """Return the count of tokens."""
        answered = sum(answer.tokens for answer in answers)
        return {
            "prompt_tokens": self._begun.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self._begun.prompt_tokens + answered,
        }

    def chunk(
        self, number: int, content: dict[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        """Return a part of a stream that belongs to one answer."""
        choice = {"index": number, **content, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(self._CHUNK), "choices": [choice]}

    def usage_chunk(self, answers: Sequence[Written]) -> dict[str, Any]:
        """Return the part of a stream that ends it with the count of tokens."""
        return {**self._head(self._CHUNK), "choices": [], "usage": self.usage(answers)}

    def piece(self, piece: Piece, told: Sequence[tuple[TokenDetail, int]]) -> dict[str, Any] | None:
        """Return the part of a stream for a token, or None where nothing is final yet.

        Args:
            piece: The token.
            told: What `Written.take` returned for it.
        """
        if not piece.text and not told:
            return None
        logprobs = self._logprobs([one for one, _ in told], [offset for _, offset in told])
        return self.chunk(piece.choice, self._delta(piece.text), logprobs)

    @abstractmethod
    def opening(self, number: int) -> dict[str, Any] | None:
        """Return the part of a stream that begins an answer, if there is one."""

    @abstractmethod
    def closing(self, number: int, finish: str) -> dict[str, Any]:
        """Return the part of a stream that ends an answer."""

    @abstractmethod
    def _content(self, answer: Written) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, details: Sequence[TokenDetail], offsets: Sequence[int]) -> Any: ...

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._begun.model,
        }


class ChatForm(AnswerForm):
    """The next turn of a conversation."""

    _PREFIX = "chatcmpl"
    _WHOLE = "chat.completion"
    _CHUNK = "chat.completion.chunk"

    def opening(self, number: int) -> dict[str, Any]:
        """Return the part that says whose turn it is."""
        return self.chunk(number, {"delta": {"role": "assistant", "content": ""}})

    def closing(self, number: int, finish: str) -> dict[str, Any]:
        """Return the part that says why the turn ends."""
        return self.chunk(number, {"delta": {}}, finish=finish)

    def _content(self, answer: Written) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": answer.text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _logprobs(self, details: Sequence[TokenDetail], _: Sequence[int]) -> Any:
        if not self.wants_logprobs:
            return None
        return {
            "content": [
                {
                    **_candidate(one),
                    "base_logprob": one.base_logprob,
                    "top_logprobs": [_candidate(other) for other in one.top],
                }
                for one in details
            ],
            "refusal": None,
        }


class CompletionForm(AnswerForm):
    """A text that goes on."""

    _PREFIX = "cmpl"
    _WHOLE = "text_completion"
    _CHUNK = "text_completion"

    def opening(self, number: int) -> None:  # noqa: ARG002
        """Return None: there is no such part."""
        return

    def closing(self, number: int, finish: str) -> dict[str, Any]:
        """Return the part that says why the text ends."""
        return self.chunk(number, {"text": ""}, finish=finish)

    def _content(self, answer: Written) -> dict[str, Any]:
        return {"text": answer.text}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, details: Sequence[TokenDetail], offsets: Sequence[int]) -> Any:
        if not self.wants_logprobs:
            return None
        return {
            "tokens": [_named(one) for one in details],
            "token_logprobs": [one.logprob for one in details],
            "base_logprobs": [one.base_logprob for one in details],
            "top_logprobs": [
                {_named(other): other.logprob for other in one.top} for one in details
            ],
            "text_offset": list(offsets[: len(details)]),
        }


def _named(one: Candidate) -> str:
    """Return a token's text, or its bytes where these are part of a character, as OpenAI does."""
    if "\N{REPLACEMENT CHARACTER}" not in one.token or one.bytes is None:
        return one.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": one.bytes}
