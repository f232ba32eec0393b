"""How an answer is asked for, and what comes back."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from cache_schema.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        temperature: 0 takes the most probable token; more samples.
        top_p: Nucleus to sample from.
        seed: Seed of the sampling; None leaves the random state alone.
        num_beams: Beams to search with; 1 searches none.
        stop: Strings that end an answer and are no part of it.
        kv_cache: `dynamic` grows with the answer, `static` has its full size from the start, which
            is what can be compiled, `none` runs the whole text again for every token.
        compile: Compile the base with its head, whose first answer takes long; takes the static
            cache.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    kv_cache: Literal["dynamic", "static", "none"] = "dynamic"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens: got {self.max_new_tokens}, expected at least 1")
        if self.temperature < 0:
            raise UsageError(f"--temperature: got {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p: got {self.top_p}, expected more than 0, at most 1")
        if self.num_beams < 1:
            raise UsageError(f"--num-beams: got {self.num_beams}, expected at least 1")
        if "" in self.stop:
            raise UsageError("--stop: got an empty string, expected text that ends an answer")
        if self.compile and self.kv_cache != "static":
            raise UsageError(f"--compile: got --kv-cache {self.kv_cache}, expected static")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer.

    Attributes:
        prompt: The prompt, as the model saw it.
        alpha: Strength, or its schedule as `AlphaSchedule.parse` reads it.
        response: The answer's text.
        tokens: Ids of the new tokens, the one that ended them included.
        finish: `stop` where the base ended the answer or a stop string came, else `length`.
        seconds: Time taken, by all answers of its batch together.
    """

    prompt: str
    alpha: float | str
    response: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)
