"""What `front` is told by the process that starts the server."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

ENVIRONMENT: Final = "MAV_ENGINE_FRONT"
"""Variable that has them: vLLM makes middleware with nothing but the application it is around."""


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """Settings of the front.

    Attributes:
        names: Of the heads; none of one head without a name.
        alpha: Strength of requests that name none.
        max_tokens: Most tokens that the page asks for.
        transcript: Whether chats are HH-RLHF's transcripts, which end where the next turn begins.
        local_only: Whether only this machine is served.
    """

    names: tuple[str, ...]
    alpha: float | str | Mapping[str, float | str]
    max_tokens: int
    transcript: bool
    local_only: bool

    def to_text(self) -> str:
        """Return them as the environment has them."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Read what `to_text` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "names": tuple(fields["names"])})
