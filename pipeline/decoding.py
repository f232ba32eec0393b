"""How an answer is asked for, and what comes back."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cache_schema.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        temperature: 0 takes the most probable token; more samples.
        top_p: Nucleus to sample from.
        seed: Seed of the sampling; None leaves the random state alone.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens: got {self.max_new_tokens}, expected at least 1")
        if self.temperature < 0:
            raise UsageError(f"--temperature: got {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p: got {self.top_p}, expected more than 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer.

    Attributes:
        prompt: The prompt, as the model saw it.
        alpha: Strength.
        response: The answer's text.
        tokens: Ids of the new tokens, the one that ended them included.
        seconds: Time taken.
    """

    prompt: str
    alpha: float
    response: str
    tokens: tuple[int, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """Yield text up to a stop string, holding back what may turn out to be its beginning."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held.split(stop)[0]
            return
        safe = next(n for n in range(len(stop), -1, -1) if held.endswith(stop[:n]))
        cut = len(held) - safe
        if cut:
            yield held[:cut]
            held = held[cut:]
    yield held
