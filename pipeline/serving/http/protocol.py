"""Closes connections whose client sends no request or reads no response."""

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0
"""Seconds that a client may take to send the head of a request."""
SEND_SECONDS: Final = 60.0
"""Seconds that a client may read nothing of a response before it is disconnected."""


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with deadlines for clients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first request's head."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Handle data, and stop the deadline once the head is complete."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Start the deadline of the next head; until its first byte, uvicorn has one of its own."""
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read."""
        self.flow.pause_writing()
        self._send_timer = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that deadline."""
        _cancel(self._send_timer)
        self.flow.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all deadlines."""
        _cancel(self._head_timer)
        _cancel(self._send_timer)
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
