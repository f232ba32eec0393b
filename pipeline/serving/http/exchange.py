"""What is known of one request, gathered on its way through the server."""

import re
import uuid
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import Scope

HEADER: Final = "X-Request-Id"
"""Header of requests and responses that has the id."""
_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_KEY: Final = "mav.exchange"


@dataclass(kw_only=True)
class Exchange:
    """A request and what became of it.

    Attributes:
        id: Its id: the client's, or a new one.
        begun: When it arrived, by `perf_counter`.
        model: Name of the base that generates.
        alpha: Strength of the heads, as JSON.
        prompt_tokens: Number of tokens of its prompts.
        completion_tokens: Number of tokens that were generated.
        first_token: Seconds from its arrival to the first of them.
        error: Code or kind of the error it was answered with.
    """

    id: str
    begun: float = field(default_factory=perf_counter)
    model: str | None = None
    alpha: Any = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    error: str | None = None

    def start(self, model: str, prompt_tokens: int) -> None:
        """Record that a completion begins."""
        self.model, self.prompt_tokens, self.completion_tokens = model, prompt_tokens, 0

    def count(self, tokens: int) -> None:
        """Record new tokens of a completion."""
        if self.first_token is None:
            self.first_token = perf_counter() - self.begun
        self.completion_tokens = (self.completion_tokens or 0) + tokens


def begin_exchange(scope: Scope) -> Exchange:
    """Return a new exchange, which `exchange_of` finds in the scope from here on.

    The client's id is kept if there is one, of at most 128 letters, digits and `._:/+=@-`.
    """
    given = Headers(scope=scope).getlist(HEADER)
    sane = len(given) == 1 and _SANE.fullmatch(given[0])
    exchange = Exchange(id=given[0] if sane else uuid.uuid4().hex)
    scope[_KEY] = exchange
    return exchange


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request; one that nobody reads where none was begun."""
    found = scope.get(_KEY)
    return found if isinstance(found, Exchange) else begin_exchange(scope)
