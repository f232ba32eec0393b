"""What continuous batching decodes: requests, the sequences they become, and their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from mav.pipeline.decoding.logprobs import LogProbs
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.decoding.sampling import SequenceSampler
from mav.pipeline.decoding.steering.strengths import Strength
from mav.pipeline.decoding.structured.constraint import Constraint
from mav.pipeline.decoding.structured.vocabulary import Grammar

PREFILL_TOKENS: Final = 8192
"""Most tokens, padding included, of the prompts that are read in one pass."""
PROMPT_LOGITS: Final = 1 << 25
"""Most logits of prompts that are held at once, of base and head, and again of the base."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to decode, with its alpha and options.

    Attributes:
        prompt: Token ids.
        alpha: Strengths.
        decoding: How tokens are chosen, without beams.
        top_logprobs: Tokens whose log-probabilities are wanted beside each chosen one's, or None
            for no log-probabilities at all.
        is_turn: Whether the response is the next turn of a conversation: it begins without white
            space, and ends where the prompts' form ends turns. Else it is a text that goes on.
        prompt_logprobs: Whether log-probabilities of the prompt's own tokens are wanted too, at
            the first token's strength; `top_logprobs` is not None then.
        kl: Whether the KL at each new token is wanted too; `top_logprobs` is not None then.
        grammar: What the response's text must be, of the base's own vocabulary; None for any text.
    """

    prompt: tuple[int, ...]
    alpha: Strength
    decoding: GenerationOptions
    top_logprobs: int | None = None
    is_turn: bool = True
    prompt_logprobs: bool = False
    kl: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """The output of one step for one sequence.

    Attributes:
        sequence: The sequence.
        token: Id of the token.
        text: Text that is certain now; may be empty.
        offset: Where in the response's text the token begins.
        finish: Why the response ends here, or None.
        logprobs: Where they were asked for.
        steered: Whether a head was added at the token.
        seconds: Since the sequence's token before, or None for its first.
        error: Why the response cannot go on from here, or None; it is of no use then.
    """

    sequence: "ActiveSequence"
    token: int
    text: str
    offset: int
    finish: Literal["stop", "length"] | None
    logprobs: LogProbs | None
    steered: bool
    seconds: float | None
    error: str | None = None


@dataclass(eq=False, kw_only=True)
class ActiveSequence:
    """A sequence that is being decoded.

    Attributes:
        request: The request.
        tokens: Ids of the new tokens so far.
        prompt_logprobs: Of the prompt's tokens but the first, where they were asked for.
        latest: When the last of them came, by `perf_counter`, or None.
    """

    request: Request
    text: ResponseText
    sampler: SequenceSampler
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: list[LogProbs] = field(default_factory=list)
    latest: float | None = None


def prefill_groups(requests: Sequence[Request], vocab_size: int) -> list[list[Request]]:
    """Split requests into groups whose padded prompts fit one prefill pass.

    Those that want log-probabilities of their prompts are read by themselves.

    Raises:
        UsageError: A request biases a logit that is not one of `vocab_size`.
    """
    for request in requests:
        request.decoding.require_tokens(vocab_size)
    groups: list[list[Request]] = []
    for request in sorted(requests, key=lambda r: (r.prompt_logprobs, len(r.prompt)), reverse=True):
        if (
            groups
            and groups[-1][0].prompt_logprobs == request.prompt_logprobs
            and (len(groups[-1]) + 1) * len(groups[-1][0].prompt) <= PREFILL_TOKENS
        ):
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups
