"""What an engine is told of its heads: plain JSON in `additional_config`.

vLLM's compile cache is keyed by it, so that a graph which hands out other layers is never reused.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.steering.strengths import Strength, as_strength

KEY: Final = "mav"


@dataclass(frozen=True, kw_only=True)
class PlacedHead:
    """A head that an engine loads.

    Attributes:
        name: Its name; empty of one without.
        folder: Its folder, as every process of the engine finds it.
        digest: SHA-256 of the file with its weights.
    """

    name: str
    folder: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """The heads of an engine, and what was checked of them.

    Attributes:
        heads: The heads.
        layers: Layers of the base whose states they read, ascending.
        num_hidden_layers: Layers of the base that they were checked against.
        tokenizer_digest: Digest of that base's vocabulary.
        alpha: Strength of requests that name none.
        allow_untested_vllm: Whether releases of vLLM that were not tested are taken.
    """

    heads: tuple[PlacedHead, ...]
    layers: tuple[int, ...]
    num_hidden_layers: int
    tokenizer_digest: str
    alpha: float | str | dict[str, float | str]
    allow_untested_vllm: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the heads; none of one head without a name."""
        return tuple(head.name for head in self.heads if head.name)

    @property
    def strength(self) -> Strength:
        """Strength of requests that name none."""
        return as_strength(self.alpha, self.names)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = dataclasses.asdict(self)
        return {**plain, "heads": list(plain["heads"]), "layers": list(self.layers)}

    @classmethod
    def of(cls, additional_config: object) -> Self:
        """Read what `engine_args` put into vLLM's `additional_config`.

        Raises:
            UsageError: It is missing, or was changed.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if given is None:
            raise UsageError(
                f"additional_config: got no {KEY!r} in it, expected what `mav engine-args` prints; "
                f"give all of its arguments to the engine"
            )
        try:
            heads = tuple(PlacedHead(**head) for head in given["heads"])
            config = cls(**{**given, "heads": heads, "layers": tuple(given["layers"])})
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(
                f"additional_config: its {KEY!r} is not what `mav engine-args` of this version "
                f"prints ({error}); make the arguments again"
            ) from error
        if not config.heads:
            raise UsageError(f"additional_config: its {KEY!r} names no head; make it again")
        return config
