"""Answering one request: it is queued, its tokens are sent or collected, and it leaves no trace.

Whatever happens meanwhile (the client goes, the server stops, a pass fails), the job is cancelled
at the end, so that no sequence is decoded without a reader.
"""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from mav.pipeline.serving.errors import ApiError
from mav.pipeline.serving.jobs import Asked, Begun, Job, Outbox, Piece
from mav.pipeline.serving.responses import AnswerForm, Written
from mav.pipeline.serving.worker import Worker


class Answer(Response):
    """The response to a request for text."""

    def __init__(self, worker: Worker, asked: Asked, form: type[AnswerForm]) -> None:
        """Prepare; the job begins when the response is sent."""
        super().__init__()
        self._worker, self._asked, self._form = worker, asked, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer.

        Raises:
            ApiError: There is no answer, and nothing was sent yet.
        """
        job = Job(asked=self._asked, outbox=Outbox())
        self._worker.waiting.put(job)
        try:
            await _until_gone(receive, self._answer(job, scope, receive, send))
        finally:
            self._worker.waiting.cancel(job)

    async def _answer(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = _Pieces(job)
        begun = await pieces.begun()
        form = self._form(begun, wants_logprobs=self._asked.top_logprobs is not None)
        answers = [Written() for _ in range(self._asked.choices)]
        if self._asked.stream:
            await self._stream(pieces, form, answers, send)
            return
        while pieces.unfinished:
            for piece in await pieces.more():
                answers[piece.choice].take(piece)
        await JSONResponse(form.whole(answers))(scope, receive, send)

    async def _stream(
        self, pieces: "_Pieces", form: AnswerForm, answers: list[Written], send: Send
    ) -> None:
        async def say(*parts: dict[str, Any] | str | None, more: bool = True) -> None:
            data = b"".join(_event(part) for part in parts if part is not None)
            await send({"type": "http.response.body", "body": data, "more_body": more})

        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await say(*(form.opening(number) for number in range(len(answers))))
        while pieces.unfinished:
            try:
                found = await pieces.more()
            except ApiError as error:
                await say(error.to_json(), more=False)
                return
            parts: list[dict[str, Any] | None] = []
            for piece in found:
                answer = answers[piece.choice]
                parts.append(form.piece(piece, answer.take(piece)))
                if piece.finish:
                    parts.append(form.closing(piece.choice, piece.finish))
            await say(*parts)
        usage = form.usage_chunk(answers) if self._asked.include_usage else None
        await say(usage, "[DONE]", more=False)


class _Pieces:
    """The tokens of all answers of a job, in the order they come.

    Attributes:
        unfinished: Number of answers that have not ended.
    """

    def __init__(self, job: Job) -> None:
        self.unfinished = job.asked.choices
        self._outbox = job.outbox

    async def begun(self) -> Begun:
        """Wait until the prompts have been read.

        Raises:
            ApiError: They cannot be.
        """
        (first,) = await self._outbox.get()
        if isinstance(first, ApiError):
            raise first
        assert isinstance(first, Begun)
        return first

    async def more(self) -> list[Piece]:
        """Wait for the next tokens.

        Raises:
            ApiError: The answers end here.
        """
        found: list[Piece] = []
        for event in await self._outbox.get():
            if isinstance(event, ApiError):
                raise event
            assert isinstance(event, Piece)
            found.append(event)
        self.unfinished -= sum(piece.finish is not None for piece in found)
        return found


def _event(part: dict[str, Any] | str) -> bytes:
    text = part if isinstance(part, str) else json.dumps(part, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def _until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or stop it when the client goes."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working_was_done = working.done()
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if working_was_done:
        working.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
