"""Scores given responses under base and head, in one forward pass.

Shape legend: B responses, S positions of the longest text, T tokens of the longest response, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mav.cache_schema.errors import DataError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.generate import left_padded, positions_of, takes_positions
from mav.pipeline.decoding.steering.strengths import Strength
from mav.pipeline.preferences.prompt_format import Messages


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probabilities of a response, natural logarithms.

    Attributes:
        prompt: The prompt, as the model saw it.
        alpha: Strength, or its schedule as `AlphaSchedule.parse` reads it; of several heads these
            by name.
        tokens: Ids of the response's tokens.
        logprobs: Of each token, under base and head.
        base_logprobs: Of each token, under the base alone.
    """

    prompt: str
    alpha: float | str | dict[str, float | str]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Of the whole response, under base and head."""
        return sum(self.logprobs)

    @property
    def base_total(self) -> float:
        """Of the whole response, under the base alone."""
        return sum(self.base_logprobs)

    @property
    def gained(self) -> float:
        """What the head adds to the whole response."""
        return self.total - self.base_total


def score_responses(
    joined: AttachedModel,
    prompts: Sequence[str | Messages],
    responses: Sequence[str],
    schedules: Sequence[Strength],
    *,
    ended: bool,
    above: float | None = None,
) -> list[Score]:
    """Return the scores of responses, each to its prompt and under its strengths.

    Args:
        joined: Base and head.
        prompts: As `PromptFormat.render` takes them.
        responses: A text for each prompt.
        schedules: Strengths for each.
        ended: Whether the token that ends a response counts too.
        above: Only tokens at which the base's entropy is above this are steered, in nats.

    Raises:
        DataError: A prompt or response is malformed, or they are too long for the base.
    """
    form = joined.form
    texts = [form.render(prompt) for prompt in prompts]
    begun = [form.tokens(text) for text in texts]
    response_ids = [
        form.response_tokens(prompt, response, ended=ended)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    for prompt, response in zip(begun, response_ids, strict=True):
        wrong = joined.base.excess(len(prompt), len(response))
        if wrong is not None:
            raise DataError(f"The prompt and its answer: {wrong}; shorten one")
    return [
        Score(
            prompt=text,
            alpha=schedule.to_json(),
            tokens=tuple(response),
            logprobs=tuple(aligned[-len(response) :]),
            base_logprobs=tuple(base[-len(response) :]),
        )
        for text, schedule, response, aligned, base in zip(
            texts,
            schedules,
            response_ids,
            *_logprobs(joined, begun, response_ids, schedules, above),
            strict=True,
        )
    ]


@torch.inference_mode()
def _logprobs(
    joined: AttachedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    schedules: Sequence[Strength],
    above: float | None,
) -> tuple[list[list[float]], list[list[float]]]:
    """Return log-probabilities under base and head, and under the base; padded in front, [B, T]."""
    if not prompts:
        return [], []
    base, aligned = joined.base, joined.aligned
    longest = max(map(len, responses))
    # What stands in front of a shorter response is read at its first strength, and not used.
    strengths = [
        [schedule.at(max(0, token)) for token in range(len(response) - longest, len(response))]
        for schedule, response in zip(schedules, responses, strict=True)
    ]
    with aligned.steering(torch.tensor(strengths), above):
        aligned.keep_base_logits = True
        logits = response_logits(base, prompts, responses)
        plain = aligned.base_logits
    assert plain is not None
    return label_logprobs(logits, responses), label_logprobs(plain, responses)


def response_logits(
    base: BaseModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """Return the logits that predict the tokens of responses, in one forward pass.

    Args:
        base: The base, with whatever hooks it has.
        prompts: Token ids of each prompt.
        responses: Token ids of each response; none is empty.

    Returns:
        [B, T, V]; those of shorter responses stand at the end.
    """
    # A response's last token is predicted and predicts nothing.
    texts = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
    inputs = left_padded(texts, base.pad_token)
    if takes_positions(base.model):
        mask = inputs["attention_mask"]
        inputs["position_ids"] = positions_of(mask, mask.shape[1])
    logits: Tensor = base.model(
        **{name: tensor.to(base.device) for name, tensor in inputs.items()},
        use_cache=False,
        logits_to_keep=max(map(len, responses)),
        return_dict=True,
    ).logits
    return logits


def label_logprobs(logits: Tensor, responses: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probabilities of responses under logits as `response_logits` returns them.

    Returns:
        T of each response; those of a shorter one stand at the end.
    """
    longest = max(map(len, responses))
    labels = torch.tensor([[0] * (longest - len(response)) + [*response] for response in responses])
    wide = logits.float()
    chosen = wide.gather(-1, labels[..., None].to(wide.device))[..., 0]
    logprobs: list[list[float]] = (chosen - wide.logsumexp(-1)).tolist()
    return logprobs
