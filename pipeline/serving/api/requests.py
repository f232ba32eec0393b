"""Completion requests: what the fields of a request mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fastapi import Request

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.steering.bounds import bounded_strength
from mav.pipeline.decoding.steering.strengths import Alpha, Strength
from mav.pipeline.decoding.structured.schema import ANY_OBJECT, json_grammar, require_library
from mav.pipeline.preferences.messages import Message, read_messages
from mav.pipeline.runtime.json_input import strict_json
from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.request_schema import (
    ChatFields,
    ObjectFormat,
    PlainFormat,
    ResponseFormat,
    SharedFields,
    StreamOptions,
    TextFields,
    validated,
)
from mav.pipeline.serving.options import ServeOptions

_MAX_BIASES: Final = 1024
"""Most entries of `logit_bias`, as each is applied again for every token."""
Prompt = str | tuple[int, ...] | tuple[Message, ...]
"""A text or token ids to continue as they are, or a conversation."""


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A request with valid fields; its prompts are checked against the base later.

    Attributes:
        model: Name of the base, or None for the one in use.
        prompts: Texts or token ids, or one conversation.
        n: Choices per prompt.
        max_tokens: Most tokens of a choice, or None for as many as there is room for; 0 only with
            `echo`.
        alpha: Alpha of each token.
        steer_above: Entropy of the base in nats, above which tokens are steered; None steers all.
        sampling: Sampling fields of `GenerationOptions` that the request sets.
        logit_bias: What is added to logits, by token id.
        seed: Seed of the first choice; each further choice of a prompt has the next one.
        stop: Texts that end a choice, or None for the defaults.
        grammar: Of the texts that a choice may be, as `json_grammar` writes it; None for any text.
        top_logprobs: Alternatives per token; None for no log-probabilities.
        stream: Whether to stream the response.
        include_usage: Whether a stream ends with the number of tokens.
        echo: Whether a choice begins with its prompt, and its log-probabilities with the prompt's.
    """

    model: str | None
    prompts: tuple[Prompt, ...]
    n: int
    max_tokens: int | None
    alpha: Strength
    steer_above: float | None
    sampling: Mapping[str, float]
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: tuple[str, ...] | None
    grammar: str | None
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    echo: bool

    @property
    def choices(self) -> int:
        """Number of choices in the response."""
        return len(self.prompts) * self.n


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object that is the body of a request.

    Raises:
        ApiError: The body is not a JSON object, or is not declared as JSON.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # Pages of other origins can send other types without a preflight request.
        raise ApiError(
            400,
            f"Content-Type: got {media_type or 'none'}, expected application/json",
            code="not_json",
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


def chat_request(body: dict[str, Any], options: ServeOptions) -> CompletionRequest:
    """Read the body of a request to `/v1/chat/completions`.

    Args:
        body: The JSON object.
        options: The server's limits and default alpha.

    Raises:
        ApiError: A field is missing, unknown, not supported or invalid.
    """
    fields = validated(ChatFields, body)
    limits = (fields.max_tokens, fields.max_completion_tokens)
    if None not in limits and len(set(limits)) > 1:
        raise ApiError(
            400,
            f"max_tokens and max_completion_tokens: got {limits[0]} and {limits[1]}, expected "
            f"only one of them",
            param="max_tokens",
        )
    if fields.top_logprobs and not fields.logprobs:
        raise ApiError(400, "top_logprobs: requires logprobs to be true", param="top_logprobs")
    return _request(
        fields,
        options,
        prompts=(read_messages([message.model_dump() for message in fields.messages]),),
        max_tokens=limits[1] if limits[0] is None else limits[0],
        top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
    )


def text_request(body: dict[str, Any], options: ServeOptions) -> CompletionRequest:
    """Read the body of a request to `/v1/completions`; see `chat_request`."""
    fields = validated(TextFields, body)
    if fields.max_tokens == 0 and not fields.echo:
        raise ApiError(
            400, "max_tokens: got 0, expected at least 1, or echo to be true", param="max_tokens"
        )
    request = _request(
        fields,
        options,
        prompts=_prompts(fields.prompt),
        max_tokens=fields.max_tokens,
        top_logprobs=None if fields.logprobs is False else fields.logprobs,
        echo=bool(fields.echo),
    )
    if request.echo and request.top_logprobs is not None and not request.alpha.is_constant:
        raise ApiError(
            400,
            f"alpha: got the schedule {request.alpha}, expected a number, as a schedule counts the "
            f"tokens of a completion and echo with logprobs asks for those of the prompt",
            param="alpha",
        )
    return request


def _prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts of the field `prompt`: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(prompt),)
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)


def _request(
    fields: SharedFields,
    options: ServeOptions,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    top_logprobs: int | None,
    echo: bool = False,
) -> CompletionRequest:
    if max_tokens is not None and max_tokens > options.max_new_tokens:
        raise ApiError(
            400,
            f"max_tokens: got {max_tokens}, expected at most {options.max_new_tokens}",
            param="max_tokens",
        )
    stream_options = fields.stream_options or StreamOptions()
    if stream_options.include_usage and not fields.stream:
        raise ApiError(400, "stream_options: requires stream to be true", param="stream_options")
    request = CompletionRequest(
        model=fields.model or None,
        prompts=prompts,
        n=fields.n or 1,
        max_tokens=max_tokens,
        alpha=_alpha(options.alpha if fields.alpha is None else fields.alpha, options),
        steer_above=options.steer_above if fields.steer_above is None else fields.steer_above,
        sampling=_sampling(fields),
        logit_bias=_logit_bias(fields.logit_bias or {}),
        seed=fields.seed,
        stop=_stop(fields.stop),
        grammar=_grammar(fields.response_format),
        top_logprobs=top_logprobs,
        stream=bool(fields.stream),
        include_usage=bool(stream_options.include_usage),
        echo=echo,
    )
    if request.choices > options.max_rows:
        raise ApiError(
            400,
            f"n: got {request.choices} choices in all, expected at most {options.max_rows}",
            param="n",
        )
    return request


def _sampling(fields: SharedFields) -> dict[str, float]:
    """Return the sampling fields that are set, as `GenerationOptions` names them."""
    penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    names = ("temperature", "top_p", "top_k", "min_p", *penalties)
    values = {name: getattr(fields, name) for name in names}
    if values["top_k"] == -1:
        # In vLLM, -1 stands for all tokens.
        values["top_k"] = 0
    return {name: value for name, value in values.items() if value is not None}


def _logit_bias(given: Mapping[str, Any]) -> dict[int, float]:
    """Return the biases by token id, of which OpenAI's API writes the ids as text."""

    def refuse(problem: str) -> NoReturn:
        raise ApiError(400, f"logit_bias: got {problem}", param="logit_bias")

    if len(given) > _MAX_BIASES:
        refuse(f"{len(given)} tokens, expected at most {_MAX_BIASES}")
    biases: dict[int, float] = {}
    for token, bias in given.items():
        if not re.fullmatch("0|[1-9][0-9]{0,17}", token):
            refuse(f"the token {token[:40]!r}, expected a token's id as text, such as '50256'")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            refuse(f"{str(bias)[:40]} for the token {token}, expected a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def _stop(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Return the stop texts that are not empty, or None if there are none."""
    texts = [stop] if isinstance(stop, str) else stop or []
    return tuple(text for text in texts if text) or None


def _grammar(given: ResponseFormat | None) -> str | None:
    if given is None or isinstance(given, PlainFormat):
        return None
    if isinstance(given, ObjectFormat):
        schema, param = ANY_OBJECT, "response_format"
    else:
        schema, param = given.json_schema.json_schema, "response_format.json_schema.schema"
    try:
        require_library()
    except UsageError as error:
        raise ApiError(
            400, f"response_format: {error}", param="response_format", code="unsupported"
        ) from error
    try:
        return json_grammar(schema)
    except UsageError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from error


def _alpha(value: Alpha, options: ServeOptions) -> Strength:
    try:
        return bounded_strength(value, options.head_names)
    except UsageError as error:
        raise ApiError(400, str(error), param="alpha") from error
