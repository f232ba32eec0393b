"""The bodies of responses: a chat turn or a text completion, whole or in chunks.

Every token with log-probabilities also has its `base_logprob`, its log-probability under the base
alone, and the usage of a request with `steer_above` has `steered_tokens`, the tokens that heads
were added at. OpenAI's API has neither.
"""

import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any, Final

from mav.pipeline.serving.api.echo import Echo
from mav.pipeline.serving.api.logprobs import TokenLogprob, token_name
from mav.pipeline.serving.api.requests import CompletionRequest
from mav.pipeline.serving.queue import Started, TokenEvent

_Logprobs = Callable[[Sequence[TokenLogprob], Sequence[int]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ResponseSchema:
    """What differs between the responses of the two endpoints.

    Attributes:
        id_prefix: Beginning of a response's id.
        object: Name of a whole response.
        chunk_object: Name of a chunk of a stream.
        opening: Content of a choice's first chunk, before any token, or None for no such chunk.
        closing: Content of a choice's last chunk.
        content: Content of a whole choice with this text.
        delta: Content of a chunk with this text.
        logprobs: Form of log-probabilities, from tokens and their offsets in the text.
    """

    id_prefix: str
    object: str
    chunk_object: str
    opening: dict[str, Any] | None
    closing: dict[str, Any]
    content: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    logprobs: _Logprobs


def _chat_logprobs(tokens: Sequence[TokenLogprob], _: Sequence[int]) -> dict[str, Any]:
    return {"content": list(tokens), "refusal": None}


def _text_logprobs(tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
    return {
        "tokens": [token_name(token) for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "base_logprobs": [token["base_logprob"] for token in tokens],
        "top_logprobs": [
            None
            if token["logprob"] is None
            else {token_name(other): other["logprob"] for other in token["top_logprobs"]}
            for token in tokens
        ],
        "text_offset": list(offsets),
    }


CHAT: Final = ResponseSchema(
    id_prefix="chatcmpl",
    object="chat.completion",
    chunk_object="chat.completion.chunk",
    opening={"delta": {"role": "assistant", "content": ""}},
    closing={"delta": {}},
    content=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    delta=lambda text: {"delta": {"content": text}},
    logprobs=_chat_logprobs,
)
TEXT: Final = ResponseSchema(
    id_prefix="cmpl",
    object="text_completion",
    chunk_object="text_completion",
    opening=None,
    closing={"text": ""},
    content=lambda text: {"text": text},
    delta=lambda text: {"text": text},
    logprobs=_text_logprobs,
)


@dataclass(kw_only=True)
class _Choice:
    """What there is of one choice: `held` are tokens whose text is not final yet."""

    echo: Echo
    text: str = ""
    tokens: int = 0
    steered: int = 0
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    held: deque[tuple[TokenLogprob, int]] = field(default_factory=deque)


class ResponseWriter:
    """Collects the tokens of one response and writes its body, or the chunks of its stream."""

    def __init__(
        self, schema: ResponseSchema, request: CompletionRequest, started: Started
    ) -> None:
        """Begin a response.

        Args:
            schema: The endpoint's form of responses.
            request: The request.
            started: The base and the number of prompt tokens.
        """
        self._schema = schema
        self._limited = request.steer_above is not None
        self._wants_logprobs = request.top_logprobs is not None
        self._prompt_tokens = started.prompt_tokens
        self._echo, self._generates = request.echo, request.max_tokens != 0
        echoes = started.echoes or [Echo(text="", offsets=())] * len(request.prompts)
        self._choices = [_Choice(echo=echo) for echo in echoes for _ in range(request.n)]
        self._id = f"{schema.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time())
        self._model = started.model

    @property
    def finished(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish_reason for choice in self._choices)

    def add(self, token: TokenEvent) -> int:
        """Add a token; return how many log-probabilities became final.

        A token's log-probability is final once its text is. The tokens of a stop string have no
        text, so theirs never is; except after a prompt that is sent back, as its readers leave out
        the last token by counting.
        """
        choice = self._choices[token.choice]
        before = len(choice.logprobs)
        if not choice.tokens:
            choice.text = choice.echo.text
        if token.prompt:
            choice.logprobs += token.prompt
            choice.offsets += choice.echo.offsets
        if not self._generates:
            choice.finish_reason = "length"
            return len(choice.logprobs) - before
        if token.logprob is not None:
            choice.held.append((token.logprob, len(choice.echo.text) + token.offset))
        choice.text += token.text
        choice.tokens += 1
        choice.steered += token.steered
        choice.finish_reason = token.finish_reason
        cut = token.finish_reason == "length" or (self._echo and token.finish_reason)
        while choice.held and (choice.held[0][1] < len(choice.text) or cut):
            logprob, offset = choice.held.popleft()
            choice.logprobs.append(logprob)
            choice.offsets.append(min(offset, len(choice.text)))
        return len(choice.logprobs) - before

    def body(self) -> dict[str, Any]:
        """Return the body of the whole response."""
        choices = [
            {
                "index": index,
                **self._schema.content(choice.text),
                "logprobs": self._logprobs(choice, 0),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return {**self._envelope(self._schema.object), "choices": choices, "usage": self._usage()}

    def opening_chunks(self) -> list[dict[str, Any]]:
        """Return the chunks that precede all tokens."""
        if self._schema.opening is None:
            return []
        return [self._chunk(index, self._schema.opening) for index in range(len(self._choices))]

    def chunks(self, token: TokenEvent) -> list[dict[str, Any]]:
        """Add a token; return the chunks to send for it, none if nothing became final."""
        chunks = []
        choice = self._choices[token.choice]
        begin = len(choice.text)
        final = self.add(token)
        text = choice.text[begin:]
        if text or final:
            logprobs = self._logprobs(choice, len(choice.logprobs) - final)
            chunks.append(self._chunk(token.choice, self._schema.delta(text), logprobs))
        if choice.finish_reason:
            closing = self._schema.closing
            chunks.append(self._chunk(token.choice, closing, finish_reason=choice.finish_reason))
        return chunks

    def usage_chunk(self) -> dict[str, Any]:
        """Return the chunk that reports the number of tokens."""
        envelope = self._envelope(self._schema.chunk_object)
        return {**envelope, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        generated = sum(choice.tokens for choice in self._choices)
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
        }
        if self._limited:
            usage["steered_tokens"] = sum(choice.steered for choice in self._choices)
        return usage

    def _logprobs(self, choice: _Choice, first: int) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return self._schema.logprobs(choice.logprobs[first:], choice.offsets[first:])

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            **content,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return {**self._envelope(self._schema.chunk_object), "choices": [choice]}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
        }
