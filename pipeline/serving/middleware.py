"""What stands before the server: who may ask, from where, and how much may be sent.

Each guard is an ASGI application around another. They are plain, not Starlette's
`BaseHTTPMiddleware`, which would put a queue between a stream and its client.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mav.pipeline.serving.errors import ApiError

MAX_BODY: Final = 1 << 20
"""Most bytes of a request's body."""
BODY_SECONDS: Final = 30.0
"""How long a client may take to send it."""
_DRAINED: Final = 8 << 20
_DRAIN_SECONDS: Final = 2.0


async def respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    await error_response(error)(scope, receive, send)


def error_response(error: ApiError) -> JSONResponse:
    """Return the response that an error is."""
    return JSONResponse(error.to_json(), error.status, headers=error.headers)


class SecurityHeaders:
    """Adds headers that keep browsers from doing more than the page means to."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        """Guard an application; every answer gets the headers it does not have."""
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    there.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class Counted:
    """Tells of every request when it has been answered."""

    def __init__(self, app: ASGIApp, answered: Callable[[str, int], None]) -> None:
        """Guard an application; `answered` is given path and status."""
        self._app, self._answered = app, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # as nginx calls it when the client has gone

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            self._answered(scope["path"], status)


class Crowded:
    """Answers that there are too many, while there are."""

    def __init__(self, app: ASGIApp, connections: Callable[[], int], most: int) -> None:
        """Wrap an application; `connections` returns how many there are."""
        self._app, self._connections, self._most = app, connections, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and self._connections() > self._most:
            error = ApiError(
                503,
                f"More than {self._most} clients are connected; try again soon.",
                code="overloaded",
                headers={"Retry-After": "1", "Connection": "close"},
            )
            await respond(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


class LocalHost:
    """Takes only requests that name this machine.

    A page elsewhere can have its name resolved to 127.0.0.1 and then ask in its own name.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Guard an application."""
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
    """Takes only requests with the key, save for the page itself and the health."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        """Guard an application."""
        self._app = app
        self._wanted = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["path"].startswith(("/v1/", "/metrics")):
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            known = hmac.compare_digest(given.strip().encode(), self._wanted)
            if not (known and scheme.lower() == "bearer"):
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
    """Answers HEAD wherever GET is answered: the same, without its body."""

    def __init__(self, app: ASGIApp) -> None:
        """Guard an application."""
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
    """Reads no more of a body than is allowed, and not for longer."""

    def __init__(self, app: ASGIApp) -> None:
        """Guard an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; too large a body is an `ApiError` where it is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # What is announced is refused before it is read; h11 has checked that it is a number.
        announced = int(headers.get("content-length", "0"))
        if announced > MAX_BODY:
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
    """Throw away some of a body: most clients read no answer before they have sent all of it."""
    left, more = _DRAINED, True
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
