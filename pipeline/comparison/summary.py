"""The measures of all systems side by side, each with its interval over prompts."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from mav.pipeline.comparison.intervals import (
    Estimate,
    length_controlled_win_rate,
    mean_interval,
    mean_result,
    paired_difference,
)
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.comparison.refusals import is_refusal
from mav.pipeline.comparison.systems import Measured, System, by_prompt, results
from mav.pipeline.comparison.text_measures import distinct_n, diversity, length, repetition

JUDGE: Final = "judge"
"""Name of a judge's win rates, among those of reward models."""
_ORDERS: Final = (2, 3, 4)
_DISTINCT: Final = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Wins:
    """Share of prompts at which a system's answers beat the reference's, ties counting half.

    Attributes:
        rate: The share.
        length_controlled: The share expected if answers were as long as the reference's.
    """

    rate: Estimate
    length_controlled: Estimate


@dataclass(frozen=True, kw_only=True)
class SystemSummary:
    """Measures of one system, each a mean over prompts.

    Attributes:
        name: Its name in tables.
        head: The head's name, or None.
        alpha: Its strength, of several heads by name; or None.
        file: File the answers were read from, or None.
        answers: Number of answers, over all samples and turns.
        missing: Number of expected answers that are missing.
        errors: Number of failed answers, which `missing` counts too.
        rewards: Reward by reward model.
        reward_gains: Reward minus that of the reference, paired by prompt.
        wins: Win rates against the reference, by reward model or `JUDGE`.
        kl: KL to the base in nats, summed over an answer's tokens.
        steered: Share of an answer's tokens that heads were added at, where there was a limit.
        tokens: New tokens of an answer.
        words: Words of an answer.
        repetition: rep-n by n.
        diversity: Product of 1 - rep-n.
        distinct: distinct-n by n, over all answers together.
        empty: Share of answers without text.
        cut: Share of answers cut at the most new tokens.
        refusing: Share of answers that refuse.
        perplexity: Perplexity under the base: exp of the mean over prompts of the mean negative
            log-probability of a token.
        tokens_per_second: New tokens per second, or None.
    """

    name: str
    head: str | None
    alpha: float | Mapping[str, float | str] | None
    file: str | None
    answers: int
    missing: int
    errors: int
    rewards: Mapping[str, Estimate]
    reward_gains: Mapping[str, Estimate]
    wins: Mapping[str, Wins]
    kl: Estimate
    steered: Estimate
    tokens: Estimate
    words: Estimate
    repetition: Mapping[int, Estimate]
    diversity: Estimate
    distinct: Mapping[int, float | None]
    empty: Estimate
    cut: Estimate
    refusing: Estimate
    perplexity: Estimate
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Results of a comparison.

    Attributes:
        source: Name of the source of the prompts.
        prompts: Number of prompts.
        dropped: Rows of the source that gave no prompt, by cause.
        samples: Answers per prompt.
        reference: The system the others are compared with.
        decoding: How tokens were chosen, or None if nothing was decoded.
        base: Name of the base, or None.
        judge: Counts of a judge's verdicts, or None.
        systems: Measures of each system.
    """

    source: str
    prompts: int
    dropped: Mapping[str, int]
    samples: int
    reference: str
    decoding: Mapping[str, Any] | None
    base: str | None
    judge: Mapping[str, Any] | None
    systems: tuple[SystemSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        return plain


def summarize_systems(
    prompts: Prompts,
    systems: Sequence[System],
    reference: str,
    expected: Sequence[AnswerKey],
    phrases: Sequence[str],
) -> tuple[SystemSummary, ...]:
    """Return the measures of systems.

    Args:
        prompts: The prompts.
        systems: The systems with their measured answers.
        reference: Name of the system that the others are compared with.
        expected: Keys of all answers a system should have.
        phrases: Phrases of refusals, from `load_phrases`.
    """
    (against,) = (system for system in systems if system.name == reference)
    return tuple(_summarize(prompts, system, against, expected, phrases) for system in systems)


def _summarize(
    prompts: Prompts,
    system: System,
    against: System,
    expected: Sequence[AnswerKey],
    phrases: Sequence[str],
) -> SystemSummary:
    given, count = system.given(), len(prompts.questions)

    def mean(measure: Callable[[Answer], float | None], *, share: bool = False) -> Estimate:
        values = by_prompt({key: measure(answer) for key, answer in given.items()}, count)
        return (mean_result if share else mean_interval)(values)

    return SystemSummary(
        name=system.name,
        head=system.head,
        alpha=system.alpha,
        file=system.file,
        answers=len(given),
        missing=sum(key not in given for key in expected),
        errors=len(system.answers) - len(given),
        rewards={
            model: mean_interval(by_prompt(values, count))
            for model, values in system.rewards.items()
        },
        reward_gains={
            model: paired_difference(
                by_prompt(values, count), by_prompt(against.rewards[model], count)
            )
            for model, values in system.rewards.items()
        },
        wins=_wins(system, against, count),
        kl=mean(lambda answer: answer.kl),
        steered=mean(_steered),
        tokens=mean(lambda answer: answer.new_tokens),
        words=mean(lambda answer: length(answer.response)),
        repetition={n: mean(partial(_repetition, n)) for n in _ORDERS},
        diversity=mean(lambda answer: diversity(answer.response)),
        distinct={
            n: distinct_n([answer.response for answer in given.values()], n) for n in _DISTINCT
        },
        empty=mean(lambda answer: not answer.response.strip(), share=True),
        cut=mean(
            lambda answer: None if answer.finish is None else answer.finish == "length",
            share=True,
        ),
        refusing=mean(lambda answer: is_refusal(answer.response, phrases), share=True),
        perplexity=_exp(mean_interval(by_prompt(system.base_nll, count))),
        tokens_per_second=_speed(given.values()),
    )


def _wins(system: System, against: System, count: int) -> dict[str, Wins]:
    measured: dict[str, Measured] = {
        model: results(values, against.rewards[model]) for model, values in system.rewards.items()
    }
    if system.verdicts:
        measured[JUDGE] = system.verdicts
    if system is against:
        return {}
    ours, theirs = (
        by_prompt({key: length(answer.response) for key, answer in one.given().items()}, count)
        for one in (system, against)
    )
    longer = [
        None if own is None or other is None else own - other
        for own, other in zip(ours, theirs, strict=True)
    ]
    return {
        name: Wins(
            rate=mean_result(by_prompt(values, count)),
            length_controlled=length_controlled_win_rate(by_prompt(values, count), longer),
        )
        for name, values in measured.items()
    }


def _steered(answer: Answer) -> float | None:
    if answer.steered_tokens is None or not answer.new_tokens:
        return None
    return answer.steered_tokens / answer.new_tokens


def _repetition(n: int, answer: Answer) -> float | None:
    return repetition(answer.response, n)


def _exp(estimate: Estimate) -> Estimate:
    value, low, high = (
        None if one is None else math.exp(min(one, 700.0))
        for one in (estimate.value, estimate.low, estimate.high)
    )
    return dataclasses.replace(estimate, value=value, low=low, high=high)


def _speed(answers: Any) -> float | None:
    timed = [(one.new_tokens, one.seconds) for one in answers if one.seconds and one.new_tokens]
    seconds = sum(seconds for _, seconds in timed)
    return sum(tokens for tokens, _ in timed) / seconds if seconds else None
