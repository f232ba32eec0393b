"""One call of transformers' `generate()` with a head in place, for prompts of any lengths."""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import CompileConfig

from mav.pipeline.base.failures import explain_failures
from mav.pipeline.base.generation_defaults import generation_config_set_aside
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.options import Generation, GenerationOptions
from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.decoding.sampling import adjusted
from mav.pipeline.decoding.steering.counting import SteeredTokens
from mav.pipeline.decoding.steering.strengths import Strength
from mav.pipeline.preferences.prompt_format import Messages


def decode(
    joined: AttachedModel,
    prompts: Sequence[Sequence[int]],
    schedules: Sequence[Strength],
    decoding: GenerationOptions,
    *,
    stopping: Sequence[StoppingCriteria] = (),
    **extra: Any,
) -> tuple[list[list[int]], SteeredTokens | None]:
    """Return the new tokens of each prompt, with the padding that follows where they end.

    With `steer_above`, also what counts those of them that were steered.

    Args:
        joined: Base and head.
        prompts: Token ids of each.
        schedules: Strengths of each.
        decoding: Options of generation.
        stopping: What ends responses, beside the base itself, lengths and stop strings.
        **extra: Further arguments of `generate()`.

    Raises:
        BaseModelError: transformers cannot run the base as it is configured.
        UsageError: A logit is biased that the base does not have.
    """
    if not prompts:
        return [], None
    base = joined.base
    decoding.require_tokens(base.vocab_size)
    inputs = left_padded(prompts, base.pad_token)
    width = inputs["input_ids"].shape[1]
    processors = LogitsProcessorList()
    if decoding.frequency_penalty or decoding.presence_penalty or decoding.logit_bias:
        processors.append(_Adjust(decoding, width))
    counted = None
    if decoding.steer_above is not None:
        counted = SteeredTokens(joined.aligned, len(prompts), width)
        processors.append(counted)
    if not all(schedule.is_constant for schedule in schedules):
        processors.append(_FollowSchedules(joined.aligned, schedules, width))
    with (
        torch.random.fork_rng(enabled=decoding.seed is not None),
        joined.aligned.steering([schedule.at(0) for schedule in schedules], decoding.steer_above),
        generation_config_set_aside(base.model),
        explain_failures(base),
    ):
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed)
        output: Tensor = base.model.generate(
            **{name: tensor.to(base.device) for name, tensor in inputs.items()},
            generation_config=_generation_config(joined, decoding),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList(
                [*stopping, *_stop_texts(joined, decoding, width)]
            ),
            **extra,
        )
    new: list[list[int]] = output[:, width:].tolist()
    return new, counted


def respond(
    joined: AttachedModel,
    prompts: Sequence[str | Messages],
    schedules: Sequence[Strength],
    decoding: GenerationOptions,
) -> list[Generation]:
    """Return the responses to several prompts, decoded together.

    Args:
        joined: Base and head.
        prompts: A user's message, messages, or a transcript each.
        schedules: Strengths of each.
        decoding: Options of generation.

    Raises:
        DataError: A prompt is malformed, or too long for the base.
    """
    texts = [joined.form.render(prompt) for prompt in prompts]
    tokens = [joined.form.tokens(text) for text in texts]
    joined.base.require_within(tokens, decoding.max_new_tokens)
    started = perf_counter()
    rows, counted = decode(joined, tokens, schedules, decoding)
    seconds = perf_counter() - started
    finished = [
        _finished(joined, text, schedule, row, decoding, seconds)
        for text, schedule, row in zip(texts, schedules, rows, strict=True)
    ]
    if counted is None:
        return finished
    return [
        replace(one, steered_tokens=counted.count(number, one.tokens))
        for number, one in enumerate(finished)
    ]


def _finished(
    joined: AttachedModel,
    prompt: str,
    schedule: Strength,
    row: Sequence[int],
    decoding: GenerationOptions,
    seconds: float,
) -> Generation:
    """Return a response without what follows its end.

    Args:
        joined: Base and head.
        prompt: Text of the prompt.
        schedule: Its strengths.
        row: Its new tokens and padding.
        decoding: How tokens were chosen.
        seconds: What the batch took.
    """
    text, ends = joined.response_text(decoding), joined.end_tokens
    response, tokens, ended = "", [], False
    for token in row:
        tokens.append(token)
        response += text.push(token)
        ended = token in ends or text.stopped
        if ended:
            break
    return Generation(
        prompt=prompt,
        alpha=schedule.to_json(),
        response=(response + text.finish()).rstrip(),
        tokens=tuple(tokens),
        finish="stop" if ended else "length",
        seconds=seconds,
    )


def left_padded(prompts: Sequence[Sequence[int]], pad_token: int) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, int64 [B, S], of prompts that end together."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[pad_token] * (width - len(p)) + [*p] for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def takes_positions(model: Any) -> bool:
    """Return whether a base takes `position_ids`."""
    return "position_ids" in inspect.signature(model.forward).parameters


def positions_of(mask: Tensor, last: int) -> Tensor:
    """Return where the last tokens of left-padded texts are, int64 [B, last].

    Args:
        mask: 1 for tokens and 0 for padding, int64 [B, S].
        last: How many of them.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -last:]


def _generation_config(joined: AttachedModel, decoding: GenerationOptions) -> GenerationConfig:
    compiled = None
    if decoding.compile:
        compiled = CompileConfig()
        compiled._compile_all_devices = True
    sampling = {
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        **({"min_p": decoding.min_p} if decoding.min_p else {}),
    }
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        do_sample=decoding.samples,
        **(sampling if decoding.samples else {}),
        repetition_penalty=decoding.repetition_penalty,
        eos_token_id=sorted(joined.end_tokens),
        pad_token_id=joined.base.pad_token,
        use_cache=decoding.cache_implementation != "none",
        cache_implementation="static" if decoding.cache_implementation == "static" else None,
        disable_compile=not decoding.compile,
        compile_config=compiled,
    )


def _stop_texts(
    joined: AttachedModel, decoding: GenerationOptions, prompt_width: int
) -> list[StoppingCriteria]:
    if not (joined.form.stops or decoding.stop):
        return []
    return [_StopTexts(lambda: joined.response_text(decoding), prompt_width)]


class _StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Stops sequences that contain a stop text, by the rule that cuts their text.

    A response's text is kept until its next token, also where a beam moves to another row.
    """

    def __init__(self, begin: Callable[[], ResponseText], prompt_width: int) -> None:
        self._begin = begin
        self._prompt_width = prompt_width
        self._known: dict[tuple[int, ...], ResponseText] = {}

    def __call__(self, input_ids: Tensor, _: Any, **__: Any) -> Tensor:
        """Return, for each sequence, whether it is to end."""
        responses = [tuple(row) for row in input_ids[:, self._prompt_width :].tolist()]
        self._known = {response: self._read(response) for response in dict.fromkeys(responses)}
        ended = [self._known[response].stopped for response in responses]
        return torch.tensor(ended, device=input_ids.device)

    def _read(self, response: tuple[int, ...]) -> ResponseText:
        before = self._known.get(response[:-1])
        if before is not None and before.stopped:
            return before
        text = self._begin() if before is None else before.copy()
        for token in response if before is None else response[-1:]:
            text.push(token)
        return text


class _Adjust(LogitsProcessor):  # type: ignore[misc]
    """Applies logit biases and the penalties that count responses, after the repetition penalty."""

    def __init__(self, decoding: GenerationOptions, prompt_width: int) -> None:
        self._decoding = decoding
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        responses = input_ids[:, self._prompt_width :].tolist()
        rows = zip(scores, responses, strict=True)
        return torch.stack([adjusted(row, Counter(came), self._decoding) for row, came in rows])


class _FollowSchedules(LogitsProcessor):  # type: ignore[misc]
    """Sets alpha for the next token; leaves the scores unchanged."""

    def __init__(
        self, aligned: AlignedLM, schedules: Sequence[Strength], prompt_width: int
    ) -> None:
        self._aligned = aligned
        self._schedules = schedules
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = input_ids.shape[1] - self._prompt_width + 1
        self._aligned.set_alpha([schedule.at(token) for schedule in self._schedules])
        return scores
