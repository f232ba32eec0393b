"""The schema of requests: their fields, and what each may be.

Clients send messages back with every field they were given, and frameworks send fields at their
defaults. Such fields request nothing and are removed before validation. Fields that request
something this server does not do are refused.
"""

import json
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.neutral_fields import (
    IGNORED,
    MESSAGE_NEUTRAL,
    REQUEST_NEUTRAL,
    Neutral,
)

_F = TypeVar("_F", bound="_Fields")
_MAX_ITEMS: Final = 2048
"""Most messages of a request, and parts of a message; longer lists are refused unread."""
_Stop = Annotated[str, Field(max_length=256)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Alpha = _Finite | Annotated[str, Field(max_length=1000)]
# Validation stops at the first invalid item, so that long lists are refused quickly.
_LIST: Final = Field(min_length=1, max_length=_MAX_ITEMS, fail_fast=True)
_TOKENS: Final = Field(min_length=1, max_length=1 << 20, fail_fast=True)


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


def _field(description: str) -> Any:
    """Return a field that may be left out."""
    return Field(None, description=description)


class StreamOptions(_Fields):
    """Field `stream_options`."""

    include_usage: bool | None = _field("Whether the last chunk has the numbers of tokens.")
    include_obfuscation: Literal[False] | None = _field("Not supported.")


class PlainFormat(_Fields):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(_Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Fields):
    """A JSON schema, as OpenAI's API wraps it."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: dict[str, Any] = Field(alias="schema", description="JSON Schema, draft 2020-12.")
    description: str | None = None
    strict: bool | None = Field(None, description="The schema is kept to in any case.")


class SchemaFormat(_Fields):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class SharedFields(_Fields):
    """Fields of both endpoints."""

    model: str | None = _field("Name of the base; by default the one in use.")
    max_tokens: Annotated[int, Field(ge=1)] | None = _field("Most tokens of a choice.")
    temperature: Annotated[_Finite, Field(ge=0, le=2)] | None = _field("0 is greedy; 1 if unset.")
    top_p: Annotated[_Finite, Field(gt=0, le=1)] | None = _field("Nucleus to sample from.")
    top_k: Annotated[int, Field(ge=-1)] | None = _field(
        "Most probable tokens to sample from; 0 and -1 are all."
    )
    min_p: Annotated[_Finite, Field(ge=0, le=1)] | None = _field(
        "Least probability of a token, relative to the largest."
    )
    repetition_penalty: Annotated[_Finite, Field(gt=0)] | None = _field("1 is none.")
    frequency_penalty: Annotated[_Finite, Field(ge=-2, le=2)] | None = _field(
        "Taken from a logit for each time its token came in the completion."
    )
    presence_penalty: Annotated[_Finite, Field(ge=-2, le=2)] | None = _field(
        "Taken once from the logits of tokens that came in the completion."
    )
    logit_bias: dict[str, Any] | None = _field(
        "Added to logits, by token id; at most 1,024, each from -100 to 100."
    )
    n: Annotated[int, Field(ge=1)] | None = _field("Choices per prompt.")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = _field(
        "Texts that end a choice and are not part of it."
    )
    stream: bool | None = _field("Whether to send the response as server-sent events.")
    stream_options: StreamOptions | None = _field("Only with `stream`.")
    seed: Annotated[int, Field(ge=-(2**62), le=2**62)] | None = _field(
        "Seed of the first choice; each further one has the next."
    )
    response_format: ResponseFormat | None = _field("What the text of a choice must be.")
    steer_above: Annotated[_Finite, Field(ge=0)] | None = _field(
        "Steer only tokens at which the base's entropy is above this, in nats."
    )
    alpha: _Alpha | Annotated[dict[str, _Alpha], Field(max_length=64)] | None = _field(
        "Strength of the head: a number, a schedule such as `0:2,64:0.5`, or these by head."
    )


class TextPart(_Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class InputMessage(_Fields):
    """A message; an assistant's may be without content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], _LIST]
    name: str | None = _field("Ignored.")


class ChatFields(SharedFields):
    """Fields of `/v1/chat/completions`."""

    messages: Annotated[list[InputMessage], _LIST]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = _field("The same as max_tokens.")
    logprobs: bool | None = _field("Whether tokens are sent with log-probabilities.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = _field(
        "Most probable tokens to send in the place of each; with `logprobs`."
    )


class TextFields(SharedFields):
    """Fields of `/v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], _LIST]
        | Annotated[list[int], _TOKENS]
        | Annotated[list[Annotated[list[int], _TOKENS]], _LIST]
    ) = Field(description="A text, token ids, or several of either.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | Literal[False] | None = _field(
        "Most probable tokens to send in the place of each, with log-probabilities."
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = _field(
        "Most tokens of a choice; 0 only with `echo`."
    )
    echo: bool | None = _field("Whether a choice begins with its prompt.")


def validated(schema: type[_F], body: dict[str, Any]) -> _F:
    """Return the fields of a request.

    An assistant's message without content gets an empty one.

    Raises:
        ApiError: A field is missing, unknown, not supported or invalid.
    """
    try:
        return schema.model_validate(_without_neutral(body, {*schema.model_fields}))
    except ValidationError as error:
        _refuse(error)


def _without_neutral(body: dict[str, Any], known: set[str]) -> dict[str, Any]:
    kept = _not_null(body)
    if isinstance(kept.get("response_format"), dict):
        kept["response_format"] = _response_format(kept["response_format"])
    if kept.get("best_of") == kept.get("n", 1):
        kept.pop("best_of", None)
    kept = {name: value for name, value in kept.items() if name not in IGNORED}
    neutral = {name: values for name, values in REQUEST_NEUTRAL.items() if name not in known}
    kept = _without(kept, neutral, "")
    if isinstance(kept.get("stream_options"), dict):
        kept["stream_options"] = _not_null(kept["stream_options"])
    if _is_short_list(kept.get("messages")):
        kept["messages"] = [
            _message(message, f"messages.{index}.") if isinstance(message, dict) else message
            for index, message in enumerate(kept["messages"])
        ]
    return kept


def _response_format(fields: dict[str, Any]) -> dict[str, Any]:
    kept = _not_null(fields)
    if isinstance(kept.get("json_schema"), dict):
        # In a schema itself, null is a value.
        kept["json_schema"] = _not_null(kept["json_schema"])
    return kept


def _message(message: dict[str, Any], place: str) -> dict[str, Any]:
    kept = _without(_not_null(message), MESSAGE_NEUTRAL, place)
    if kept.get("role") == "assistant":
        kept.setdefault("content", "")
    if _is_short_list(kept.get("content")):
        kept["content"] = [
            _not_null(part) if isinstance(part, dict) else part for part in kept["content"]
        ]
    return kept


def _is_short_list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_ITEMS


def _not_null(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _without(fields: dict[str, Any], neutral: Neutral, place: str) -> dict[str, Any]:
    for name, value in fields.items():
        if name in neutral and not any(_same(value, allowed) for allowed in neutral[name]):
            raise ApiError(
                400,
                f"{place}{name}: is not supported; leave it out",
                param=f"{place}{name}",
                code="unsupported",
            )
    return {name: value for name, value in fields.items() if name not in neutral}


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _refuse(error: ValidationError) -> NoReturn:
    """Raise an `ApiError` that names the first invalid field."""
    errors = error.errors(include_url=False, include_context=False)
    # If a field may have several types, the error of the type it has says more than the others.
    same_field = [other for other in errors if other["loc"][:1] == errors[0]["loc"][:1]]
    deepest = max(same_field, key=lambda error: len(error["loc"]))
    first = next((e for e in same_field if not e["type"].endswith("_type")), deepest)
    # After the last field's name, pydantic gives the names of the types it tried.
    place = [
        str(part)
        for part in first["loc"]
        if isinstance(part, int) or (part.isidentifier() and part not in ("str", "float"))
    ]
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        problem = "is not a known field"
    elif first["type"] == "missing":
        problem = "is missing"
    else:
        problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}{_got(first['input'])}"
    raise ApiError(400, f"{name}: {problem}", param=name) from error


def _got(value: object) -> str:
    text = json.dumps(value)
    return f", got {text if len(text) <= 80 else text[:79] + '…'}"
