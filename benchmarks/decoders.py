"""The ways of decoding that `benchmarks.decode` sets side by side, and what each of them reads.

All but one are transformers' `generate()`, greedy, with a KV cache, on the same random prompt, and
none ends before its last token. The two-model decoder is that of `benchmarks.baselines.decoding`:
its reward model has the base's shape, weights of its own (copies) and a cache of its own.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from benchmarks.baselines.decoding import BesideReward
from benchmarks.synthetic import say, wait
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.counting import SteeredTokens
from mav.pipeline.decoding.steering.uncertainty import entropy
from mav.pipeline.preferences.prompt_format import PromptFormat

ALPHA: Final = 1.0
_HEAD_CALLS: Final = 8
"""Calls of the head alone that a round takes the median of."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One answer's times, in seconds.

    Attributes:
        first: From the call to the first token.
        tokens: Between each token and the next.
    """

    first: float
    tokens: list[float]


Way = Callable[[], Timing]


@dataclass(frozen=True, kw_only=True)
class Clock(BaseStreamer):  # type: ignore[misc]
    """A streamer that notes when tokens come; it has them when the device has done with them."""

    at: list[float] = field(default_factory=lambda: [perf_counter()])

    def put(self, _: Tensor) -> None:
        """Take the prompt, then token after token."""
        self.at.append(perf_counter())

    def end(self) -> None:
        """Take note of nothing."""

    def timing(self) -> Timing:
        """Return what was noted."""
        began, _, first, *_ = self.at
        return Timing(first=first - began, tokens=_differences(self.at[2:]))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is decoded.

    Attributes:
        prompts: Ids of random tokens, [B, S].
        new_tokens: Tokens of every answer.
    """

    prompts: Tensor
    new_tokens: int

    @classmethod
    def random(
        cls, base: BaseModel, batch_size: int, prompt_tokens: int, new_tokens: int
    ) -> "Task":
        """Return a task for a base."""
        torch.manual_seed(0)
        prompts_BS = torch.randint(1, base.vocab_size, (batch_size, prompt_tokens))
        return cls(prompts=prompts_BS.to(base.device), new_tokens=new_tokens)

    def generate(
        self,
        base: BaseModel,
        steered: AbstractContextManager[Any] | None = None,
        reward: BaseModel | None = None,
        *,
        clock: Clock | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> Tensor:
        """Return prompts and answers, [B, S].

        Args:
            base: The base.
            steered: Steers it while open.
            reward: Decodes beside it, both equally strong.
            clock: Notes the times.
            processors: Called between the tokens.
        """
        beside = [] if reward is None else [BesideReward(reward, 1.0)]
        with nullcontext() if steered is None else steered:
            found: Tensor = base.model.generate(
                self.prompts,
                attention_mask=torch.ones_like(self.prompts),
                generation_config=GenerationConfig(
                    max_new_tokens=self.new_tokens, do_sample=False, pad_token_id=0
                ),
                logits_processor=LogitsProcessorList([*beside, *processors]),
                streamer=clock,
            )
        assert found.shape[1] == self.prompts.shape[1] + self.new_tokens, "an answer ended early"
        return found

    def timed(
        self,
        base: BaseModel,
        aligned: AlignedLM | None = None,
        alpha: float = ALPHA,
        reward: BaseModel | None = None,
        above: float | None = None,
    ) -> Timing:
        """Time an answer; a head's hooks are there for as long, and steer above this entropy."""
        with nullcontext() if aligned is None else aligned:
            steered = None if aligned is None else aligned.steering(alpha, above)
            clock = Clock()
            self.generate(base, steered, reward, clock=clock)
        return clock.timing()

    def limit_for(self, base: BaseModel, share: float) -> float:
        """Return the entropy in nats that a share of the base's own tokens exceeds."""
        answer = self.generate(base)
        kept = answer.shape[1] - self.prompts.shape[1] + 1
        logits = base.model(answer, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        return float(entropy(logits).flatten().quantile(1 - share))

    def steered_share(self, aligned: AlignedLM, above: float) -> float:
        """Return the share of an answer's tokens that are steered above an entropy."""
        counted = SteeredTokens(aligned, len(self.prompts), self.prompts.shape[1])
        with aligned:
            found = self.generate(
                aligned.base, aligned.steering(ALPHA, above), processors=[counted]
            )
        new = found[:, self.prompts.shape[1] :].tolist()
        steered = sum(counted.count(number, tokens) for number, tokens in enumerate(new))
        return steered / (len(new) * self.new_tokens)

    def timed_in_flight(self, aligned: AlignedLM) -> Timing:
        """Time the same answers by the decoder of requests that come and go, text included."""
        base = aligned.base
        form = PromptFormat(name="hh", tokenizer=base.tokenizer)
        requests = [
            Request(
                prompt=tuple(row),
                alpha=AlphaSchedule(((0, ALPHA),)),
                decoding=GenerationOptions(max_new_tokens=self.new_tokens),
                is_turn=False,  # without stop strings
            )
            for row in self.prompts.tolist()
        ]
        with aligned:
            decoder = ContinuousBatchDecoder(AttachedModel(base=base, aligned=aligned, form=form))
            at = [perf_counter()]
            decoder.add(requests)
            at.append(perf_counter())
            while decoder.sequences:
                decoder.step()
                at.append(perf_counter())
        assert len(at) == self.new_tokens + 1, "an answer ended early"
        return Timing(first=at[1] - at[0], tokens=_differences(at[1:]))

    def timed_head(self, aligned: AlignedLM) -> Timing:
        """Time the head alone, on the states of one token of each sequence."""
        base, head = aligned.base, aligned.head
        states_BTKH = torch.randn(
            len(self.prompts), 1, head.config.num_layers, base.hidden_size, device=head.device
        ).to(head.dtype)
        at = [perf_counter()]
        for _ in range(_HEAD_CALLS + 1):
            with torch.no_grad():
                head(states_BTKH).float()
            wait(head.device)
            at.append(perf_counter())
        return Timing(first=at[1] - at[0], tokens=_differences(at[1:]))


def copied(base: BaseModel) -> BaseModel:
    """Return a reward model of the base's shape, with weights of its own."""
    return BaseModel(model=copy.deepcopy(base.model), tokenizer=base.tokenizer)


def take_rounds(ways: dict[str, Way], rounds: int) -> dict[str, list[Timing]]:
    """Time all ways in turn, each round beginning with another, after a round of warm-up."""
    names = list(ways)
    found: dict[str, list[Timing]] = {name: [] for name in names}
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            timing = ways[name]()
            if number:
                found[name].append(timing)
        say(f"round {number} of {rounds}" if number else "warm-up")
    return found


def latency(timings: list[Timing]) -> float:
    """Return seconds per token: the median over answers of each one's median."""
    return median(median(timing.tokens) for timing in timings)


def latency_ratio(above: list[Timing], below: list[Timing]) -> float:
    """Return the median over rounds of the ratio of two answers' medians."""
    pairs = zip(above, below, strict=True)
    return median(median(a.tokens) / median(b.tokens) for a, b in pairs)


def whole_ratio(above: list[Timing], below: list[Timing]) -> float:
    """Return the median over rounds of the ratio of all time between two answers' tokens.

    Where tokens take one of two times, the median of them says nothing of the other.
    """
    return median(sum(a.tokens) / sum(b.tokens) for a, b in zip(above, below, strict=True))


def _differences(at: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(at)]
