"""What passes between the event loop, which talks to clients, and the thread that decodes."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.serving.errors import ApiError

ChatPrompt = tuple[Mapping[str, str], ...]
"""Turns of a conversation."""
TokenPrompt = tuple[int, ...]
"""Ids of tokens."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request whose fields are valid; its prompts are checked against the base later.

    Attributes:
        model: Id of the base, or None for the one in use.
        prompts: Texts or tokens to go on with as they are, or the one conversation.
        n: Answers to each prompt.
        max_tokens: Most tokens of an answer, or None for what there is room for.
        alpha: Strengths.
        sampling: Fields of `GenerationOptions` the request names that say how tokens are drawn.
        seed: Of the first answer; each further one has the next seed.
        stop: Texts that end an answer, or None for those of the server's settings.
        top_logprobs: Alternatives to report at every token; None for no log-probabilities.
        stream: Whether the answer comes piece by piece.
        include_usage: Whether a stream ends with the count of tokens.
    """

    model: str | None
    prompts: tuple[str | TokenPrompt | ChatPrompt, ...]
    n: int
    max_tokens: int | None
    alpha: AlphaSchedule
    sampling: Mapping[str, float]
    seed: int | None
    stop: tuple[str, ...] | None
    top_logprobs: int | None
    stream: bool
    include_usage: bool

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return len(self.prompts) * self.n


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A token that could have come.

    Attributes:
        token: Its text; a part of a character shows as the replacement character.
        bytes: Its bytes, or None where the tokenizer cannot say.
        logprob: Natural logarithm of its probability under base and head.
    """

    token: str
    bytes: list[int] | None
    logprob: float


@dataclass(frozen=True, kw_only=True)
class TokenDetail(Candidate):
    """A token that came.

    Attributes:
        base_logprob: Under the base alone.
        top: The most probable tokens.
    """

    base_logprob: float
    top: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The prompts have been read.

    Attributes:
        model: Id of the base that answers.
        prompt_tokens: Tokens of all prompts.
    """

    model: str
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token of an answer.

    Attributes:
        choice: Number of the answer.
        text: Text that is certain now; may be empty.
        offset: Where in the answer's text the token begins.
        finish: Why the answer ends here, or None.
        detail: Where log-probabilities were asked for and the token is part of the answer.
    """

    choice: int
    text: str
    offset: int
    finish: Literal["stop", "length"] | None
    detail: TokenDetail | None


Event = Begun | Piece | ApiError
"""An `ApiError` ends all answers of a job."""


class Outbox:
    """Carries events from the decoding thread to the event loop that made it.

    It holds no more than the tokens of one request, whose number is limited.
    """

    def __init__(self) -> None:
        """Begin; to be called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Sequence[Event]] = asyncio.Queue()

    def put(self, events: Sequence[Event]) -> None:
        """Send events; may be called in any thread, also when the loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, events)
        except RuntimeError:
            # A closed loop has no clients any more.
            assert self._loop.is_closed()

    async def get(self) -> Sequence[Event]:
        """Wait for the next events."""
        return await self._events.get()


@dataclass(eq=False, kw_only=True)
class Job:
    """A request on its way.

    Attributes:
        asked: The request.
        outbox: Where its events go.
        cancelled: Nobody waits for it any more; set by the event loop, read by the thread.
        since: When it came, by `perf_counter`.
    """

    asked: Asked
    outbox: Outbox
    cancelled: bool = False
    since: float = field(default_factory=perf_counter)
