"""Options and results of generation."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, get_args

from mav.cache_schema.errors import UsageError

_COLDEST: Final = 1e-4
"""Lower temperatures choose the most probable token in any case, and would overflow."""
_HOTTEST: Final = 1e4
_LARGEST_SEED: Final = 2**62
_WHOLE: Final = ("max_new_tokens", "top_k", "num_beams", "seed")
_REAL: Final = ("temperature", "top_p", "min_p", "repetition_penalty")

CacheImplementation = Literal["dynamic", "static", "none"]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of generation.

    Attributes:
        max_new_tokens: Most tokens of a response.
        temperature: 0 takes the most probable token; more samples.
        top_k: Sample from so many of the most probable tokens; 0 from all.
        top_p: Nucleus to sample from.
        min_p: Sample only tokens at least so probable, relative to the most probable one.
        repetition_penalty: What logits of tokens that came before are divided or multiplied by; 1
            leaves them alone.
        seed: Seed of the sampling, of a whole batch; None leaves the random state alone.
        num_beams: Beams to search with; 1 searches none.
        stop: Strings that end a response and are not part of it.
        cache_implementation: `dynamic` grows with the response, `static` has its full size from the
            start, which
            is what can be compiled, `none` runs the whole text again for every token.
        compile: Compile the base with its head, whose first response takes long; takes the static
            cache.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    cache_implementation: CacheImplementation = "dynamic"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in _WHOLE:
            if name != "seed" or self.seed is not None:
                self._take(name, Integral, int, "a whole number")
        for name in _REAL:
            self._take(name, Real, float, "a number")
        self._take_stop()
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens: got {self.max_new_tokens}, expected at least 1")
        if not 0 <= self.temperature <= _HOTTEST:
            raise UsageError(f"--temperature: got {self.temperature}, expected 0 to {_HOTTEST:g}")
        if self.top_k < 0:
            raise UsageError(f"--top-k: got {self.top_k}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p: got {self.top_p}, expected more than 0, at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"--min-p: got {self.min_p}, expected 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UsageError(
                f"--repetition-penalty: got {self.repetition_penalty}, expected more than 0"
            )
        if self.seed is not None and abs(self.seed) > _LARGEST_SEED:
            raise UsageError(
                f"--seed: got {self.seed}, expected {-_LARGEST_SEED} to {_LARGEST_SEED}"
            )
        if self.num_beams < 1:
            raise UsageError(f"--num-beams: got {self.num_beams}, expected at least 1")
        if self.cache_implementation not in get_args(CacheImplementation):
            known = ", ".join(get_args(CacheImplementation))
            raise UsageError(
                f"--cache-implementation: got {self.cache_implementation!r}, "
                f"expected one of {known}"
            )
        if not isinstance(self.compile, bool):
            raise UsageError(f"--compile: got {self.compile!r}, expected True or False")
        if self.compile and self.cache_implementation != "static":
            raise UsageError(
                f"--compile: got --cache-implementation {self.cache_implementation}, "
                "expected static"
            )

    def _take(self, name: str, kind: type, plain: type, expected: str) -> None:
        """Keep a number as Python's own, whichever library it is of."""
        value = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: got {value!r}, expected {expected}")
        object.__setattr__(self, name, plain(value))

    def _take_stop(self) -> None:
        given: Any = self.stop
        stops = (given,) if isinstance(given, str) else given
        if not isinstance(stops, Sequence) or not all(isinstance(one, str) for one in stops):
            raise UsageError(f"--stop: got {given!r}, expected a text, or a list of texts")
        if "" in stops:
            raise UsageError("--stop: got an empty string, expected text that ends an answer")
        object.__setattr__(self, "stop", tuple(stops))

    def with_seed_offset(self, number: int) -> "GenerationOptions":
        """Return a copy for one of several responses or batches, with its own seed.

        Args:
            number: Of the response, from 0. Each has the next seed; the smallest follow the
                largest.
        """
        if self.seed is None:
            return self
        seed = self.seed + number
        if seed > _LARGEST_SEED:
            # A power of two less: generators that read only the last bits get others all the same.
            seed -= 2 * _LARGEST_SEED
        return dataclasses.replace(self, seed=seed)

    def require_streamable(self) -> None:
        """Refuse options under which no text is final before the end, such as beams.

        Raises:
            UsageError: It searches with beams.
        """
        if self.num_beams > 1:
            raise UsageError(
                f"--num-beams: got {self.num_beams}, expected 1, as an answer that beams search "
                f"for cannot be streamed"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled; at temperatures near 0 the most probable one is taken."""
        return self.temperature >= _COLDEST

    @property
    def unused(self) -> tuple[str, ...]:
        """Sampling options that have no effect because nothing is sampled."""
        if self.samples:
            return ()
        said = {
            "--top-k": self.top_k != 0,
            "--top-p": self.top_p != 1,
            "--min-p": self.min_p != 0,
            "--seed": self.seed is not None,
        }
        return tuple(option for option, given in said.items() if given)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One response.

    Attributes:
        prompt: The prompt, as the model saw it.
        alpha: Strength, or its schedule as `AlphaSchedule.parse` reads it.
        response: The response's text.
        tokens: Ids of the new tokens, the one that ended them included.
        finish: `stop` where the base ended the response or a stop string came, else `length`.
        seconds: Time taken, by all responses of its batch together.
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
