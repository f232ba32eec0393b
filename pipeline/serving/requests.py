"""The fields of a request: which there are, what they may be, and what they mean."""

import json
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.alpha import AlphaSchedule, as_schedule
from mav.pipeline.runtime.json_input import strict_json
from mav.pipeline.serving.errors import ApiError
from mav.pipeline.serving.jobs import Asked, ChatPrompt, TokenPrompt
from mav.pipeline.serving.neutral import MOST, without_neutral
from mav.pipeline.serving.options import MAX_ALPHA

_LATEST: Final = 1_000_000
"""Last token that a schedule of strengths may name."""

_F = TypeVar("_F", bound="_Fields")
_Stop = Annotated[str, Field(max_length=256)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
# A list of much that is wrong must not take long to refuse.
_LIST: Final = Field(min_length=1, max_length=MOST, fail_fast=True)
_TOKENS: Final = Field(min_length=1, max_length=1 << 20, fail_fast=True)


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _StreamOptions(_Fields):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Shared(_Fields):
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[_Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[_Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[_Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[_Finite, Field(gt=0)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**62), le=2**62)] | None = None
    alpha: _Finite | Annotated[str, Field(max_length=1000)] | None = None


class _TextPart(_Fields):
    type: Literal["text"]
    text: str


class _Message(_Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_TextPart], _LIST]
    name: str | None = None


class _Chat(_Shared):
    messages: Annotated[list[_Message], _LIST]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class _Completion(_Shared):
    prompt: (
        str
        | Annotated[list[str], _LIST]
        | Annotated[list[int], _TOKENS]
        | Annotated[list[Annotated[list[int], _TOKENS]], _LIST]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | Literal[False] | None = None


class FieldLimits(BaseModel):
    """What a server's settings say of the fields.

    Attributes:
        alpha: Strength where a request names none.
        max_new_tokens: Most tokens of an answer.
        max_rows: Most answers of a request.
    """

    alpha: float
    max_new_tokens: int
    max_rows: int


def chat_asked(body: dict[str, Any], limits: FieldLimits) -> Asked:
    """Read a request for the next turn of a conversation.

    Raises:
        ApiError: A field is missing, unknown, not supported, or not as it should be.
    """
    fields = _read(_Chat, body)
    asked = (fields.max_tokens, fields.max_completion_tokens)
    if None not in asked and len(set(asked)) > 1:
        raise ApiError(
            400,
            f"max_tokens and max_completion_tokens: got {asked[0]} and {asked[1]}, expected one",
            param="max_tokens",
        )
    if fields.top_logprobs and not fields.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    return _asked(
        fields,
        limits,
        prompts=(_conversation(fields.messages),),
        max_tokens=asked[1] if asked[0] is None else asked[0],
        top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
    )


def completion_asked(body: dict[str, Any], limits: FieldLimits) -> Asked:
    """Read a request to go on with a text; see `chat_asked`."""
    fields = _read(_Completion, body)
    return _asked(
        fields,
        limits,
        prompts=_prompts(fields.prompt),
        max_tokens=fields.max_tokens,
        top_logprobs=None if fields.logprobs is False else fields.logprobs,
    )


def _prompts(given: Any) -> tuple[str | TokenPrompt, ...]:
    """Return the prompts of a text, of tokens, or of a list of either."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given[0], int):
        return (tuple(given),)
    return tuple(one if isinstance(one, str) else tuple(one) for one in given)


def _asked(
    fields: _Shared,
    limits: FieldLimits,
    *,
    prompts: tuple[str | TokenPrompt | ChatPrompt, ...],
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Asked:
    if max_tokens is not None and max_tokens > limits.max_new_tokens:
        raise ApiError(
            400,
            f"max_tokens: got {max_tokens}, expected at most {limits.max_new_tokens}",
            param="max_tokens",
        )
    options = fields.stream_options or _StreamOptions()
    if options.include_usage and not fields.stream:
        raise ApiError(400, "stream_options: needs stream to be true", param="stream_options")
    asked = Asked(
        model=fields.model or None,
        prompts=prompts,
        n=fields.n or 1,
        max_tokens=max_tokens,
        alpha=_alpha(limits.alpha if fields.alpha is None else fields.alpha),
        sampling=_sampling(fields),
        seed=fields.seed,
        stop=_stops(fields.stop),
        top_logprobs=top_logprobs,
        stream=bool(fields.stream),
        include_usage=options.include_usage,
    )
    if asked.choices > limits.max_rows:
        raise ApiError(
            400,
            f"n: got {asked.choices} answers in all, expected at most {limits.max_rows}",
            param="n",
        )
    return asked


def _sampling(fields: _Shared) -> dict[str, float]:
    """Return what a request says of how tokens are drawn, as `GenerationOptions` has it."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = {name: getattr(fields, name) for name in names}
    if given["top_k"] == -1:
        # As vLLM calls all of them.
        given["top_k"] = 0
    return {name: value for name, value in given.items() if value is not None}


def _stops(given: str | list[str] | None) -> tuple[str, ...] | None:
    """Return the stop texts of a request, or None where it has none; an empty one is none."""
    several = [given] if isinstance(given, str) else given or []
    return tuple(stop for stop in several if stop) or None


def _alpha(value: float | str) -> AlphaSchedule:
    try:
        schedule = AlphaSchedule.parse(value) if isinstance(value, str) else as_schedule(value)
    except (UsageError, OverflowError) as error:
        raise ApiError(400, str(error), param="alpha") from error
    if any(abs(strength) > MAX_ALPHA or token > _LATEST for token, strength in schedule.points):
        raise ApiError(
            400,
            f"alpha: got {value!r}, expected strengths from {-MAX_ALPHA:g} to {MAX_ALPHA:g} at "
            f"tokens up to {_LATEST}",
            param="alpha",
        )
    return schedule


def _conversation(messages: list[_Message]) -> ChatPrompt:
    return tuple(
        {
            "role": "system" if turn.role == "developer" else turn.role,
            "content": turn.content
            if isinstance(turn.content, str)
            else "".join(part.text for part in turn.content),
        }
        for turn in messages
    )


def _read(kind: type[_F], body: dict[str, Any]) -> _F:
    try:
        return kind.model_validate(without_neutral(body))
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    """Report the first invalid field."""
    every = error.errors(include_url=False, include_context=False)
    # Of a field that may have several types, the message for the type it has says more.
    tried = [one for one in every if one["loc"][:1] == every[0]["loc"][:1]]
    found = next((one for one in tried if not one["type"].endswith("_type")), tried[0])
    # What follows the last field's name are pydantic's names of the types it tried.
    place = [
        str(part)
        for part in found["loc"]
        if isinstance(part, int) or (part.isidentifier() and part not in ("str", "float"))
    ]
    name = ".".join(place)
    if found["type"] == "extra_forbidden":
        problem = "is not a known field"
    elif found["type"] == "missing":
        problem = "is missing"
    else:
        problem = f"{found['msg'][:1].lower()}{found['msg'][1:]}"
    value = "" if found["type"] in ("missing", "extra_forbidden") else _shown(found["input"])
    raise ApiError(400, f"{name}: {problem}{value}", param=name) from error


def _shown(value: object) -> str:
    text = json.dumps(value)
    return f", got {text if len(text) <= 80 else text[:79] + '…'}"


async def json_body(request: Request) -> dict[str, Any]:
    """Return the object a request carries.

    Raises:
        ApiError: It carries something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Pages of other origins can send other types without the browser asking first.
        raise ApiError(
            400, f"Content-Type: got {kind or 'none'}, expected application/json", code="not_json"
        )
    content = await request.body()
    try:
        body = strict_json(content)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}", code="not_json") from error
    if not isinstance(body, dict):
        raise ApiError(
            400, f"The body: got {type(body).__name__}, expected an object", code="not_json"
        )
    return body
