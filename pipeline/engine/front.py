"""What is around vLLM's server: `alpha` as a plain field of requests, and MAV's page.

A plain ASGI application. It reads the bodies of completions alone, puts `alpha` where vLLM looks
for arguments of logits processors, and passes everything else on.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mav.cache_schema.errors import UsageError
from mav.pipeline.engine.admission import FIELD, checked_strength
from mav.pipeline.engine.front_settings import ENVIRONMENT, FrontSettings
from mav.pipeline.preferences.transcripts import HUMAN
from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.http.middleware import BodyLimit, LocalHost, error_response
from mav.pipeline.serving.static_files import HEADERS, page_files

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = ("/v1/completions", _CHAT)
_ARGUMENTS: Final = "vllm_xargs"


class Front:
    """Wraps vLLM's server."""

    def __init__(self, app: ASGIApp, settings: FrontSettings | None = None) -> None:
        """Wrap an application.

        Args:
            app: vLLM's server.
            settings: The settings; those of the environment if None.
        """
        self._settings = settings or FrontSettings.of_text(os.environ[ENVIRONMENT])
        self._app = app
        self._page = {file.path: file for file in page_files()}
        guarded: ASGIApp = BodyLimit(self._routed)
        self._guarded = LocalHost(guarded) if self._settings.local_only else guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._guarded(scope, receive, send)
        except ApiError as error:
            await error_response(error, scope)(scope, receive, send)

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method == "GET" and path in self._page:
            file = self._page[path]
            headers = {**HEADERS, "Cache-Control": "no-cache"}
            response = Response(file.content, media_type=file.media_type, headers=headers)
            await response(scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            await self._app(scope, receive, self._with_alpha(send))
        elif method == "POST" and path in _COMPLETIONS:
            body = await Request(scope, receive).body()
            changed = self._changed(body, chat=path == _CHAT)
            await self._app(_with_length(scope, changed), _once(changed, receive), send)
        else:
            await self._app(scope, receive, send)

    def _changed(self, body: bytes, *, chat: bool) -> bytes:
        """Return the body of a completion as vLLM reads it.

        Raises:
            ApiError: Its alpha is not a strength, or is given twice.
        """
        try:
            fields = json.loads(body)
        except ValueError:
            return body  # vLLM says what is wrong with it
        if not isinstance(fields, dict):
            return body
        alpha = fields.pop(FIELD, None)
        arguments = fields.get(_ARGUMENTS)
        argument = arguments.get(FIELD) if isinstance(arguments, Mapping) else None
        if alpha is None:
            alpha = argument
        elif argument is not None:
            raise ApiError(
                400,
                "alpha: got one of its own and one in `vllm_xargs`, expected only one of them",
                param=FIELD,
            )
        if fields.get("use_beam_search"):
            raise ApiError(
                400,
                "use_beam_search: is not supported with heads, as vLLM's beam search takes no "
                "alpha; leave it out, or use `mav generate --num-beams`",
                param="use_beam_search",
                code="unsupported",
            )
        if fields.get("steer_above") is not None:
            raise ApiError(
                400,
                "steer_above: is not supported by heads in vLLM, which steer every token; leave "
                "it out, or use `mav serve`",
                param="steer_above",
                code="unsupported",
            )
        if alpha is not None:
            try:
                strength = checked_strength(alpha, self._settings.names)
            except UsageError as error:
                raise ApiError(400, str(error), param=FIELD) from error
            fields[_ARGUMENTS] = {**(arguments or {}), FIELD: str(strength)}
        if chat and self._settings.transcript:
            _as_transcript(fields)
        return json.dumps(fields).encode()

    def _with_alpha(self, send: Send) -> Send:
        """Return a `send` that adds to the list of models what the page needs to know."""
        started: list[Message] = []
        parts: list[bytes] = []

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            content = b"".join(parts)
            (start,) = started
            if start["status"] == 200:
                content = self._models(content)
            headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            headers.append((b"content-length", str(len(content)).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": content})

        return sent

    def _models(self, content: bytes) -> bytes:
        listed: dict[str, Any] = json.loads(content)
        for number, model in enumerate(listed["data"]):
            model["in_use"] = number == 0
        alpha, most = self._settings.alpha, self._settings.max_tokens
        return json.dumps({**listed, "alpha": alpha, "max_tokens": most}).encode()


def _as_transcript(fields: dict[str, Any]) -> None:
    """Have a chat begin and end as HH-RLHF's transcripts do, as `mav serve` has it."""
    fields.setdefault("add_special_tokens", True)
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stops is None or isinstance(stops, list):
        fields["stop"] = [*(stops or []), HUMAN]


def _with_length(scope: Scope, body: bytes) -> Scope:
    headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}


def _once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body, and afterwards what the client sends."""
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received
