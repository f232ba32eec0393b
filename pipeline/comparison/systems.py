"""A system's answers, and the measures of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.questions import key_of
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.preferences.prompt_format import Messages

Measured = Mapping[AnswerKey, float | None]
"""A number per answer; None if there is none."""


@dataclass(kw_only=True)
class System:
    """A system and its answers.

    Attributes:
        name: Its name in tables.
        answers: Its answers by key; failed ones have an `error`.
        head: The head's name, or None for the base, for several heads and for files.
        alpha: Its strength, of several heads by name; None for files.
        file: Name of the file the answers were read from, or None.
        base: Digest of the weights of the base its KL refers to, or None if unknown.
        rewards: Rewards of its answers, by reward model.
        base_nll: Mean negative log-probability of a token under the base, in nats.
        verdicts: Results of a judge: 1 if the answer is better than the reference's, 0 if it is
            worse, 0.5 for a tie.
    """

    name: str
    answers: Mapping[AnswerKey, Answer]
    head: str | None = None
    alpha: float | Mapping[str, float | str] | None = None
    file: str | None = None
    base: str | None = None
    rewards: dict[str, Measured] = field(default_factory=dict)
    base_nll: Measured = field(default_factory=dict)
    verdicts: Measured = field(default_factory=dict)

    def given(self) -> dict[AnswerKey, Answer]:
        """Return the answers that did not fail."""
        return {key: answer for key, answer in self.answers.items() if answer.error is None}

    def asked(self, prompts: Prompts, key: AnswerKey) -> str | Messages:
        """Return the prompt of an answer, including the system's own answers to earlier turns."""
        before = [self.answers.get(key._replace(turn=turn)) for turn in range(key.turn)]
        texts = ["" if answer is None else answer.response for answer in before]
        return prompts.questions[key.question].asked(texts)


def by_prompt(values: Measured, prompts: int) -> list[float | None]:
    """Return the mean over each prompt's answers, or None without answers.

    Samples and turns of a prompt are not independent, so intervals are taken over prompts.

    Args:
        values: A number per answer.
        prompts: Number of prompts.
    """
    several: list[list[float]] = [[] for _ in range(prompts)]
    for key, value in values.items():
        if value is not None:
            several[key.question].append(value)
    return [sum(found) / len(found) if found else None for found in several]


def results(values: Measured, reference: Measured) -> dict[AnswerKey, float | None]:
    """Return 1 for each answer whose value exceeds the reference's, 0.5 for equal values.

    Args:
        values: Values of a system.
        reference: Values of the reference; samples are compared by number.
    """
    return {key: _result(values.get(key), reference.get(key)) for key in values}


def _result(value: float | None, against: float | None) -> float | None:
    # A NaN is neither a win, a loss nor a tie.
    if value is None or against is None or value != value or against != against:
        return None
    return (value > against) + 0.5 * (value == against)


def keys_of(prompts: Prompts, systems: Sequence[System]) -> list[AnswerKey]:
    """Return the keys of all answers each system should have, up to the largest sample number."""
    samples = 1 + max((key.sample for one in systems for key in one.answers), default=0)
    return [
        AnswerKey(number, sample, turn)
        for number, question in enumerate(prompts.questions)
        for sample in range(samples)
        for turn in range(question.turns)
    ]


def measure_each(
    prompts: Prompts,
    systems: Sequence[System],
    measure: Callable[[Sequence[str | Messages], Sequence[str]], Sequence[float | None]],
) -> list[dict[AnswerKey, float | None]]:
    """Apply a measure to every answer of each system.

    An answer that occurs twice for a prompt is measured once: in two batches, results may differ in
    the last digits, and a tie would become a win or a loss.

    Args:
        prompts: The prompts.
        systems: The systems.
        measure: Called with prompts and an answer to each.
    """
    places: dict[tuple[str, str], int] = {}
    asked: list[str | Messages] = []
    responses: list[str] = []
    placed: list[dict[AnswerKey, int]] = []
    for system in systems:
        placed.append({})
        for key, answer in system.given().items():
            prompt = system.asked(prompts, key)
            place = places.setdefault((key_of(prompt), answer.response), len(places))
            if place == len(asked):
                asked.append(prompt)
                responses.append(answer.response)
            placed[-1][key] = place
    values = measure(asked, responses)
    return [{key: values[place] for key, place in of_system.items()} for of_system in placed]
