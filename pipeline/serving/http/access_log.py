r"""The access log: an id and a line for every request.

A line says who asked for what and what became of it, never what was in it: no prompts, no text, no
keys, no query strings. Whatever a client chooses stands in it as JSON writes it, in ASCII, so that
no client can begin a line of its own.
"""

import json
import logging
import re
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mav.pipeline.serving.http.exchange import HEADER, Exchange, begin_exchange
from mav.pipeline.serving.options import ACCESS_LOGGER, AccessLogForm

_log = logging.getLogger(ACCESS_LOGGER)

_DISCONNECTED: Final = 499
_LONGEST: Final = 256
"""Most characters of a path or method in a line."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:/+=@,-]+")


class AccessLog:
    """Gives every request its id and, unless it is off, its line, when the response has ended."""

    def __init__(self, app: ASGIApp, form: AccessLogForm) -> None:
        """Wrap an application."""
        self._app, self._form = app, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = begin_exchange(scope)
        status, size, outcome = _DISCONNECTED, 0, "cancelled"

        async def watched(message: Message) -> None:
            nonlocal status, size, outcome
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = exchange.id
            await send(message)
            if message["type"] == "http.response.body":
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    refused = 400 <= status < 500
                    outcome = (
                        "done" if exchange.error is None else "refused" if refused else "failed"
                    )

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            outcome, exchange.error = "failed", exchange.error or type(error).__name__
            raise
        finally:
            if self._form != "off" and _log.isEnabledFor(logging.INFO):
                entry = _entry(scope, exchange, status, size, outcome)
                _log.info("%s", json.dumps(entry) if self._form == "json" else _line(entry))


def _entry(
    scope: Scope, exchange: Exchange, status: int, size: int, outcome: str
) -> dict[str, Any]:
    """Return what a line says, as JSON has it; what does not apply is left out."""
    client = scope.get("client")
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"][:_LONGEST],
        "path": scope["path"][:_LONGEST],
        "status": status,
        "seconds": round(perf_counter() - exchange.begun, 4),
        "id": exchange.id,
        "client": client[0] if client else None,
        "bytes": size,
        "outcome": outcome,
        "error": exchange.error,
        "model": exchange.model,
        "alpha": exchange.alpha,
        "prompt_tokens": exchange.prompt_tokens,
        "completion_tokens": exchange.completion_tokens,
        "first_token_seconds": None
        if exchange.first_token is None
        else round(exchange.first_token, 4),
    }
    return {name: value for name, value in entry.items() if value is not None}


def _line(entry: dict[str, Any]) -> str:
    """Write an entry for readers: first what is always there, then `name=value`."""
    first = [_shown(entry.pop(name)) for name in ("time", "method", "path", "status")]
    return " ".join([*first, *(f"{name}={_shown(value)}" for name, value in entry.items())])


def _shown(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, separators=(",", ":"))
