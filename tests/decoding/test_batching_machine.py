"""Sequences are added, stepped and cancelled in any order: each gets the tokens it gets alone."""

from functools import cache
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import ActiveSequence, Request, TokenOutput
from mav.pipeline.decoding.steering.strengths import Alpha, as_strength
from tests.support.profiles import examples
from tests.support.steering.steered import steered

CASES: Final[list[tuple[int, int, Alpha, float, int | None]]] = [
    (1, 1, 0.0, 0.0, None),
    (3, 9, 12.0, 0.0, 2),
    (4, 6, -8.0, 1.4, None),
    (9, 12, AlphaSchedule(((0, 18.0), (6, -9.0))), 0.0, 0),
    (17, 3, 1.0, 1.4, 1),
    (26, 8, 5.0, 0.0, None),
]
"""Tokens of the prompt, new tokens, alpha, temperature and alternatives per token."""
REQUESTS: Final = [
    Request(
        prompt=tuple(2 + (7 * length * (place + 3)) % 290 for place in range(length)),
        alpha=as_strength(alpha),
        decoding=GenerationOptions(max_new_tokens=tokens, temperature=temperature, seed=length),
        top_logprobs=top_logprobs,
    )
    for length, tokens, alpha, temperature, top_logprobs in CASES
]

Heard = list[tuple[int, str, str | None]]
"""Token, text and reason to finish, of each token of a sequence."""


@cache
def mav() -> MAVInference:
    return steered()


@cache
def alone(number: int) -> Heard:
    """What a request gets in a batch of its own."""
    decoder = ContinuousBatchDecoder(mav().joined)
    outputs = decoder.add([REQUESTS[number]])
    while decoder.sequences:
        outputs += decoder.step()
    return [heard(output) for output in outputs]


def heard(output: TokenOutput) -> tuple[int, str, str | None]:
    return output.token, output.text, output.finish


class Batching(RuleBasedStateMachine):
    """A decoder, and the tokens of each of its sequences so far."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = ContinuousBatchDecoder(mav().joined)
        self.numbers: dict[ActiveSequence, int] = {}
        self.heard: dict[ActiveSequence, Heard] = {}
        self.cancelled: set[ActiveSequence] = set()

    @rule(numbers=st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=3))
    @precondition(lambda self: len(self.decoder.sequences) < 8)
    def add(self, numbers: list[int]) -> None:
        requests = [REQUESTS[number] for number in numbers]
        outputs = self.decoder.add(requests)
        for output in outputs:
            self.numbers[output.sequence] = REQUESTS.index(output.sequence.request)
            self.heard[output.sequence] = [heard(output)]
        added = [self.numbers[output.sequence] for output in outputs]
        assert sorted(added) == sorted(numbers)

    @rule()
    def step(self) -> None:
        before = list(self.decoder.sequences)
        outputs = self.decoder.step()
        assert [output.sequence for output in outputs] == before
        for output in outputs:
            self.heard[output.sequence].append(heard(output))

    @rule(data=st.data())
    @precondition(lambda self: self.decoder.sequences)
    def cancel(self, data: Any) -> None:
        at = data.draw(st.integers(0, len(self.decoder.sequences) - 1), label="sequence")
        sequence = self.decoder.sequences[at]
        self.decoder.cancel(sequence)
        self.cancelled.add(sequence)

    @invariant()
    def each_is_as_if_alone(self) -> None:
        for sequence, tokens in self.heard.items():
            assert tokens == alone(self.numbers[sequence])[: len(tokens)]

    @invariant()
    def those_that_have_not_ended_are_in_the_batch(self) -> None:
        running = [
            sequence
            for sequence, tokens in self.heard.items()
            if sequence not in self.cancelled and tokens[-1][2] is None
        ]
        assert set(self.decoder.sequences) == set(running)
        assert len(self.decoder.sequences) == len(running) == len(self.decoder._mask)

    def teardown(self) -> None:
        while self.decoder.sequences:
            self.step()
        self.each_is_as_if_alone()
        for sequence, tokens in self.heard.items():
            if sequence not in self.cancelled:
                assert len(tokens) == len(alone(self.numbers[sequence]))


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=examples(0.5), stateful_step_count=25)
