"""Closes connections whose client sends no request or reads no response."""

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0
"""How long a client may take to send the head of a request."""
SEND_SECONDS: Final = 60.0
"""How long a client may read nothing of its answer before it counts as gone."""


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol with deadlines for slow clients."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._heading: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch_heading()

    def data_received(self, data: bytes) -> None:
        """Take what a client sent."""
        super().data_received(data)
        self._watch_heading()

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn does so itself until its first byte comes."""
        super().on_response_complete()
        self._watch_heading()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        self.flow.pause_writing()
        self._sending = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on with one that does."""
        _cancel(self._sending)
        self.flow.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        _cancel(self._heading)
        _cancel(self._sending)
        super().connection_lost(exc)

    def _watch_heading(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if not waits:
            _cancel(self._heading)
            self._heading = None
        elif self._heading is None:
            self._heading = self.loop.call_later(HEADER_SECONDS, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
