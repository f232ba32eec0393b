"""From what is asked to what is decoded: prompts become tokens of the base that is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from mav.cache_schema.errors import DataError
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.continuous_batching import Request
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.preferences.prompt_format import text_tokens
from mav.pipeline.serving.errors import ApiError
from mav.pipeline.serving.jobs import Asked, ChatPrompt, Job, TokenPrompt


@dataclass(frozen=True, kw_only=True)
class Choice(Request):
    """One answer of a job.

    Attributes:
        job: The job.
        number: Number of the answer.
    """

    job: Job
    number: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long prompts and answers may be, and what requests leave open.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        max_prompt_tokens: Most tokens of a prompt.
        base_generation_config: Whether what requests leave open is as the base has it, and not as
            in OpenAI's API.
    """

    max_new_tokens: int
    max_prompt_tokens: int
    base_generation_config: bool = False


def choices_of(job: Job, joined: AttachedModel, limits: Limits) -> list[Choice]:
    """Return the answers a job asks for, those to the first prompt first.

    Raises:
        ApiError: A prompt is empty, too long, or not in the form it should have.
    """
    asked = job.asked
    found: list[Choice] = []
    for prompt in asked.prompts:
        tokens = _tokens(joined, prompt)
        length = _answer_length(asked, len(tokens), joined, limits)
        decoding = _decoding(asked, joined, limits, length)
        for again in range(asked.n):
            number = len(found)
            found.append(
                Choice(
                    prompt=tuple(tokens),
                    alpha=asked.alpha,
                    # Answers of one seed would all be the same.
                    decoding=decoding.with_seed_offset(again),
                    top_logprobs=asked.top_logprobs,
                    is_turn=bool(prompt) and isinstance(prompt[0], Mapping),
                    job=job,
                    number=number,
                )
            )
    return found


def _decoding(
    asked: Asked, joined: AttachedModel, limits: Limits, length: int
) -> GenerationOptions:
    left_open = joined.settings if limits.base_generation_config else {"temperature": 1.0}
    given: dict[str, Any] = {"max_new_tokens": length, "seed": asked.seed, **asked.sampling}
    if asked.stop is not None:
        given["stop"] = asked.stop
    return GenerationOptions(**{**left_open, **given})


def _tokens(joined: AttachedModel, prompt: str | TokenPrompt | ChatPrompt) -> list[int]:
    if isinstance(prompt[0] if prompt else "", int):
        return _known(joined, cast("TokenPrompt", prompt))
    if isinstance(prompt, str):
        (tokens,) = text_tokens(joined.base.tokenizer, [prompt])
        param = "prompt"
    else:
        param = "messages"
        try:
            tokens = joined.form.tokens(joined.form.render(cast("ChatPrompt", prompt)))
        except DataError as error:
            raise ApiError(400, str(error), param=param) from error
    if not tokens:
        raise ApiError(400, "prompt: got no tokens, expected at least one", param=param)
    return tokens


def _known(joined: AttachedModel, prompt: TokenPrompt) -> list[int]:
    size = joined.base.vocab_size
    for token in prompt:
        if not 0 <= token < size:
            raise ApiError(
                400, f"prompt: got the token {token}, expected 0 to {size - 1}", param="prompt"
            )
    return [*prompt]


def _answer_length(asked: Asked, prompt: int, joined: AttachedModel, limits: Limits) -> int:
    if prompt > limits.max_prompt_tokens:
        raise _too_long(
            f"The prompt has {prompt} tokens, this server takes {limits.max_prompt_tokens}"
        )
    context = joined.base.context_length
    most = min(joined.settings.get("max_new_tokens", limits.max_new_tokens), limits.max_new_tokens)
    wanted = most if asked.max_tokens is None else asked.max_tokens
    if context is None or prompt + wanted <= context:
        return wanted
    if asked.max_tokens is None and prompt < context:
        return context - prompt
    raise _too_long(
        f"The base reads {context} tokens; the prompt has {prompt}"
        + ("" if asked.max_tokens is None else f" and max_tokens is {wanted}")
    )


def _too_long(message: str) -> ApiError:
    return ApiError(400, f"{message}; shorten one.", code="context_length_exceeded")
