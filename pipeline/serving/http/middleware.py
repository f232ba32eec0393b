"""Middleware: access control, limits and headers.

Each class is a plain ASGI application around another. Starlette's `BaseHTTPMiddleware` would put a
queue between a stream and its client.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import Final

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.http.exchange import exchange_of

MAX_BODY: Final = 1 << 20
"""Most bytes of a request's body."""
BODY_SECONDS: Final = 30.0
"""Seconds that a client may take to send it."""
HAS_KEY: Final = "mav.has_key"
"""Entry of a request's scope: whether it came with the API key, where there is one."""
_DRAIN_BYTES: Final = 8 << 20
_DRAIN_SECONDS: Final = 2.0


async def respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error as the response."""
    await error_response(error, scope)(scope, receive, send)


def error_response(error: ApiError, scope: Scope) -> JSONResponse:
    """Return an error as the response to a request, whose access log names it."""
    exchange = exchange_of(scope)
    exchange.error = error.code or error.type
    return JSONResponse(error.to_json(exchange.id), error.status, headers=error.headers)


class SecurityHeaders:
    """Adds security headers to every response."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        """Wrap an application; headers that a response already has are kept."""
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    present.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class RequestCounter:
    """Reports the path and status of every request."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        """Wrap an application; `count` is called with path and status after each request."""
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # nginx's status for a client that disconnected

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, record_status)
        finally:
            self._count(scope["path"], status)


class ConnectionLimit:
    """Refuses requests while too many clients are connected."""

    def __init__(self, app: ASGIApp, connections: Callable[[], int], limit: int) -> None:
        """Wrap an application; `connections` returns their number."""
        self._app, self._connections, self._limit = app, connections, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and self._connections() > self._limit:
            error = ApiError(
                503,
                f"More than {self._limit} clients are connected; try again soon.",
                code="overloaded",
                headers={"Retry-After": "1", "Connection": "close"},
            )
            await respond(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


class LocalHost:
    """Refuses requests whose Host header does not name this machine.

    This prevents DNS rebinding, in which a web page has its own name resolve to 127.0.0.1.
    Starlette's `TrustedHostMiddleware` takes names only, not all of 127.0.0.0/8, and refuses in
    plain text.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and not _is_local(Headers(scope=scope).getlist("host")):
            error = ApiError(
                403,
                "Host: expected localhost or 127.0.0.1, as only this machine is served; use "
                "--host and --api-key to serve others",
                code="foreign_host",
            )
            await respond(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


class ApiKey:
    """Refuses requests without the API key, except for some paths."""

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str]) -> None:
        """Wrap an application; `open_paths` need no key."""
        self._app = app
        self._key = key.encode()
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            scheme, _, credentials = Headers(scope=scope).get("authorization", "").partition(" ")
            valid = hmac.compare_digest(credentials.strip().encode(), self._key)
            scope[HAS_KEY] = valid and scheme.lower() == "bearer"
            if not scope[HAS_KEY] and scope["path"] not in self._open:
                error = ApiError(
                    401,
                    "Authorization: expected `Bearer` and the server's API key",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await respond(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET without the body."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


class BodyLimit:
    """Limits the size of a body and the time to read it."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; reading a body that is too large or too slow raises an `ApiError`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # A declared length is refused before reading; h11 has checked that it is a number.
        declared = int(headers.get("content-length", "0"))
        if declared > MAX_BODY:
            if "expect" not in headers:
                await _drain(receive)
            await respond(_too_large(), scope, receive, send)
            return
        size, whole, deadline = 0, False, monotonic() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - monotonic()))
            except TimeoutError:
                raise ApiError(
                    408,
                    f"The body took longer than {BODY_SECONDS:g} seconds.",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size > MAX_BODY:
                    if not whole:
                        await _drain(receive)
                    raise _too_large()
            return message

        await self._app(scope, limited, send)


async def _drain(receive: Receive) -> None:
    """Discard part of a body, as most clients read no response before they have sent it all."""
    left, more = _DRAIN_BYTES, True
    deadline = monotonic() + _DRAIN_SECONDS
    while more and left > 0 and monotonic() < deadline:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - monotonic()))
        except TimeoutError:
            return
        left -= len(message.get("body", b""))
        more = message.get("more_body", False)


def _too_large() -> ApiError:
    return ApiError(
        413,
        f"The body has more than {MAX_BODY} bytes.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def _is_local(hosts: list[str]) -> bool:
    if len(hosts) != 1:
        return False
    host = hosts[0]
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
