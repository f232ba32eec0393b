"""From a job to decoder requests: prompts become tokens of the base that is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.structured.vocabulary import Grammar
from mav.pipeline.preferences.messages import Messages
from mav.pipeline.preferences.prompt_format import text_tokens
from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.requests import CompletionRequest, Prompt
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.queue import Job

MAX_PROMPT_LOGPROBS: Final = 65_536
"""Most log-probabilities of prompts in a response, alternatives included."""


@dataclass(frozen=True, kw_only=True)
class Choice(Request):
    """One choice of a job, as the decoder takes it.

    Attributes:
        job: The job.
        index: Index of the choice in the response.
    """

    job: Job
    index: int


def job_choices(job: Job, attached: AttachedModel, options: ServeOptions) -> list[Choice]:
    """Return the choices of a job, grouped by prompt.

    Args:
        job: The job.
        attached: The base in use, with the head.
        options: Limits of prompts and choices, and where unset sampling fields come from.

    Raises:
        ApiError: A prompt is empty, too long or invalid, or a schema is.
    """
    request = job.request
    choices: list[Choice] = []
    grammar = _grammar(request, attached)
    prompts = [prompt_tokens(attached, prompt) for prompt in request.prompts]
    if request.echo:
        _check_number(request, sum(map(len, prompts)))
    for prompt, tokens in zip(request.prompts, prompts, strict=True):
        length = _max_new_tokens(request, len(tokens), attached, options)
        decoding = _decoding(request, attached, options, length)
        for number in range(request.n):
            choices.append(
                Choice(
                    prompt=tuple(tokens),
                    alpha=request.alpha,
                    # With the same seed, all choices would be equal.
                    decoding=decoding.with_seed_offset(number),
                    top_logprobs=request.top_logprobs,
                    grammar=grammar,
                    is_turn=bool(prompt) and isinstance(prompt[0], Mapping),
                    prompt_logprobs=request.echo and request.top_logprobs is not None,
                    job=job,
                    index=len(choices),
                )
            )
    return choices


def prompt_tokens(attached: AttachedModel, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt.

    Raises:
        ApiError: The prompt is empty or invalid.
    """
    if isinstance(prompt[0] if prompt else "", int):
        return _checked_ids(attached, cast("tuple[int, ...]", prompt))
    if isinstance(prompt, str):
        (tokens,) = text_tokens(attached.base.tokenizer, [prompt])
        param = "prompt"
    else:
        param = "messages"
        try:
            tokens = attached.form.tokens(attached.form.render(cast("Messages", prompt)))
        except DataError as error:
            raise ApiError(400, str(error), param=param) from error
    if not tokens:
        raise ApiError(400, "prompt: got no tokens, expected at least one", param=param)
    return tokens


def _checked_ids(attached: AttachedModel, prompt: tuple[int, ...]) -> list[int]:
    size = attached.base.vocab_size
    for token in prompt:
        if not 0 <= token < size:
            raise ApiError(
                400, f"prompt: got the token {token}, expected 0 to {size - 1}", param="prompt"
            )
    return [*prompt]


def _decoding(
    request: CompletionRequest, attached: AttachedModel, options: ServeOptions, length: int
) -> GenerationOptions:
    # OpenAI's default temperature is 1.
    defaults = attached.settings if options.base_generation_config else {"temperature": 1.0}
    # The pass that reads a prompt gives a first token in any case; that of 0 is not sent.
    fields: dict[str, Any] = {
        "max_new_tokens": max(1, length),
        "seed": request.seed,
        "steer_above": request.steer_above,
        **request.sampling,
    }
    if request.stop is not None:
        fields["stop"] = request.stop
    if request.logit_bias:
        fields["logit_bias"] = request.logit_bias
    decoding = GenerationOptions(**{**defaults, **fields})
    try:
        decoding.require_tokens(attached.base.vocab_size)
    except UsageError as error:
        raise ApiError(400, str(error), param="logit_bias") from error
    return decoding


def _grammar(request: CompletionRequest, attached: AttachedModel) -> Grammar | None:
    if request.grammar is None:
        return None
    try:
        return attached.vocabulary.compile(request.grammar)
    except UsageError as error:
        raise ApiError(
            400, f"response_format: the schema {error}", param="response_format"
        ) from error


def _check_number(request: CompletionRequest, prompt_tokens: int) -> None:
    """Refuse more log-probabilities of prompts than can be written without a long wait for others.

    Raises:
        ApiError: They are too many.
    """
    if request.top_logprobs is None:
        return
    count = prompt_tokens * request.n * (request.top_logprobs + 1)
    if count > MAX_PROMPT_LOGPROBS:
        raise ApiError(
            400,
            f"logprobs: got {count} log-probabilities of prompts, {request.top_logprobs + 1} for "
            f"each of {prompt_tokens * request.n} tokens, expected at most {MAX_PROMPT_LOGPROBS}; "
            f"ask for fewer alternatives, or send fewer prompts at once",
            param="logprobs",
        )


def _max_new_tokens(
    request: CompletionRequest, prompt_length: int, attached: AttachedModel, options: ServeOptions
) -> int:
    if prompt_length > options.max_prompt_tokens:
        raise _too_long(
            f"The prompt has {prompt_length} tokens; this server accepts at most "
            f"{options.max_prompt_tokens}; shorten it."
        )
    context = attached.base.context_length
    limit = options.max_new_tokens
    limit = min(attached.settings.get("max_new_tokens", limit), limit)
    wanted = limit if request.max_tokens is None else request.max_tokens
    if context is None or prompt_length + wanted <= context:
        return wanted
    if request.max_tokens is None and prompt_length < context:
        return context - prompt_length
    if request.max_tokens is None:
        raise _too_long(
            f"The prompt has {prompt_length} tokens, which leaves no room in the base's context of "
            f"{context}; shorten it."
        )
    raise _too_long(
        f"The prompt has {prompt_length} tokens and max_tokens is {wanted}, but the base's context "
        f"is {context}; shorten the prompt or lower max_tokens."
    )


def _too_long(message: str) -> ApiError:
    return ApiError(400, message, code="context_length_exceeded")
