"""The HTTP server: its signals, its end."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from mav.pipeline.serving.address import Address
from mav.pipeline.serving.middleware import Crowded
from mav.pipeline.serving.protocol import HEADER_SECONDS, ImpatientProtocol
from mav.pipeline.serving.worker import Worker

_log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5.0
"""How long completions may still be written after the server is asked to stop."""
_MOST_CONNECTIONS: Final = 512
_MORE_CONNECTIONS: Final = 2 * _MOST_CONNECTIONS
"""Above the first number, connections are refused with an answer clients understand."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class HttpServer(uvicorn.Server):
    """Serves until a signal arrives or `should_exit` is set, then shuts down cleanly.

    Attributes:
        url: Where it is.
        worker: What decodes.
    """

    def __init__(self, address: Address, app: ASGIApp, worker: Worker) -> None:
        """Prepare; `run` serves.

        Args:
            address: Where.
            app: What answers.
            worker: What decodes; it starts and stops with the server.
        """
        super().__init__(
            uvicorn.Config(
                Crowded(app, lambda: len(self.server_state.connections), _MOST_CONNECTIONS),
                # What there is to say is said here; the rest goes to Python's logging.
                log_config=None,
                access_log=False,
                http=ImpatientProtocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MORE_CONNECTIONS,
                timeout_keep_alive=round(HEADER_SECONDS),
                timeout_graceful_shutdown=round(GRACE_SECONDS) + 2,
            )
        )
        self._socket = address.socket
        self.url = address.url
        self.worker = worker

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end; the worker has ended too then."""
        try:
            super().run(sockets or [self._socket])
        finally:
            self._socket.close()
            self.worker.stop(grace=0.0)
            # A pass or a load that is under way cannot be stopped; the process may end meanwhile.
            self.worker.join(GRACE_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.worker.start()
        _log.info(f"Serving {self.worker.base} at {self.url} (Ctrl-C stops)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, leave what runs a little time, then end."""
        self.worker.stop(GRACE_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take a signal as the wish to end, and not, as uvicorn does, raise it again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
