"""Sends the response to one completion request, whole or as a stream of server-sent events.

However it ends (the client disconnects, the server stops, a forward pass fails), the job is
cancelled, so that no sequence is decoded without a client.
"""

import asyncio
import json
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.requests import CompletionRequest
from mav.pipeline.serving.api.responses import ResponseSchema, ResponseWriter
from mav.pipeline.serving.http.exchange import Exchange, exchange_of
from mav.pipeline.serving.queue import Job, TokenEvent
from mav.pipeline.serving.worker import Worker


class CompletionResponse(Response):
    """The response to a completion request; its job is queued when the response is sent."""

    def __init__(self, worker: Worker, request: CompletionRequest, schema: ResponseSchema) -> None:
        """Prepare a response."""
        super().__init__()
        self._worker, self._request, self._schema = worker, request, schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Queue the job and send what it generates.

        Raises:
            ApiError: The job failed before anything was sent.
        """
        exchange = exchange_of(scope)
        exchange.alpha = self._request.alpha.to_json()
        job = Job(self._request, exchange.id)
        self._worker.queue.put(job)
        try:
            await _until_disconnect(receive, self._respond(job, scope, receive, send))
        finally:
            self._worker.queue.cancel(job)

    async def _respond(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        started, exchange = await job.started(), exchange_of(scope)
        exchange.start(started.model, started.prompt_tokens)
        writer = ResponseWriter(self._schema, self._request, started)
        if self._request.stream:
            await self._stream(job, writer, exchange, send)
            return
        while not writer.finished:
            for token in await self._tokens(job, exchange):
                writer.add(token)
        await JSONResponse(writer.body())(scope, receive, send)

    async def _tokens(self, job: Job, exchange: Exchange) -> Sequence[TokenEvent]:
        tokens = await job.tokens()
        # The token of a prompt that is only sent back is not one of the response's.
        exchange.count(0 if self._request.max_tokens == 0 else len(tokens))
        return tokens

    async def _stream(
        self, job: Job, writer: ResponseWriter, exchange: Exchange, send: Send
    ) -> None:
        async def send_events(events: Iterable[dict[str, Any] | str], more: bool = True) -> None:
            body = b"".join(map(_encoded, events))
            await send({"type": "http.response.body", "body": body, "more_body": more})

        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_events(writer.opening_chunks())
        while not writer.finished:
            try:
                tokens = await self._tokens(job, exchange)
            except ApiError as error:
                exchange.error = error.code or error.type
                await send_events([error.to_json(exchange.id)], more=False)
                return
            await send_events(chunk for token in tokens for chunk in writer.chunks(token))
        usage = [writer.usage_chunk()] if self._request.include_usage else []
        await send_events([*usage, "[DONE]"], more=False)


def _encoded(event: dict[str, Any] | str) -> bytes:
    data = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    return f"data: {data}\n\n".encode()


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, and cancel it if the client disconnects."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working_was_done = working.done()
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if working_was_done:
        working.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
