"""The schema of responses: what clients and generators of clients may rely on.

`responses`, `errors` and the routes write plain dictionaries; tests hold these against the models
here.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Alternative(_Part):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class Token(Alternative):
    """A token that came, with its log-probability under base and head, and under the base."""

    base_logprob: float
    top_logprobs: list[Alternative]


class ChatLogprobs(_Part):
    """Log-probabilities of a chat completion."""

    content: list[Token]
    refusal: None


class AssistantMessage(_Part):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Part):
    """A choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Usage(_Part):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    steered_tokens: int | None = Field(
        None, description="Tokens that heads were added at; only with steer_above."
    )


class _Envelope(_Part):
    id: str
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="Name of the base that generated.")


class ChatCompletion(_Envelope):
    """A chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class Delta(_Part):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Part):
    """A chunk's part of a choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(_Envelope):
    """The data of one event of a stream; the last event's is `[DONE]`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(None, description="In the last chunk, if asked for.")


class TextLogprobs(_Part):
    """Log-probabilities of a text completion, a list entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    base_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Part):
    """A choice of a text completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(_Envelope):
    """A text completion."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(_Part):
    """A chunk's part of a choice."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextChunk(_Envelope):
    """The data of one event of a stream; the last event's is `[DONE]`."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = Field(None, description="In the last chunk, if asked for.")


class ErrorDetail(_Part):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str | None = Field(None, description="Only where the server is at fault.")


class Error(_Part):
    """An error; in a stream that has begun, the data of its last event."""

    error: ErrorDetail


class Model(_Part):
    """A base that requests may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    in_use: bool


class Models(_Part):
    """The bases, and what requests get that leave fields out."""

    object: Literal["list"]
    data: list[Model]
    alpha: float | dict[str, float]
    max_tokens: int


class Health(_Part):
    """State of the server; only its status to those without the API key."""

    status: Literal["ok", "stopping"]
    base: str | None = None
    head: str | dict[str, str] | None = None
    queue: int | None = Field(None, description="Requests that wait.")
    rows: int | None = Field(None, description="Choices that are being decoded.")


class Version(_Part):
    """Version of MAV."""

    version: str


class Description(BaseModel):
    """This description."""

    model_config = ConfigDict(extra="allow")
    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
