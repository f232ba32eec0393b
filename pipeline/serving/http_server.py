"""The HTTP server: its limits, its signals and its shutdown."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from mav.pipeline.serving.http.access_log import AccessLog
from mav.pipeline.serving.http.middleware import ConnectionLimit
from mav.pipeline.serving.http.protocol import HEADER_SECONDS, DeadlineProtocol
from mav.pipeline.serving.options import AccessLogForm
from mav.pipeline.serving.worker import Worker

_log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5.0
"""Seconds that running completions have left after the server is asked to stop."""
_MAX_CONNECTIONS: Final = 512
"""Above this number, requests get an error of this server's."""
_HARD_MAX_CONNECTIONS: Final = 2 * _MAX_CONNECTIONS
"""Above this number, uvicorn refuses them itself."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class HttpServer(uvicorn.Server):
    """Serves until a signal arrives or `should_exit` is set, then shuts down cleanly.

    Attributes:
        url: Its URL.
        worker: Decodes the requests.
    """

    def __init__(
        self,
        bound: socket.socket,
        url: str,
        app: ASGIApp,
        worker: Worker,
        *,
        access_log: AccessLogForm = "off",
    ) -> None:
        """Prepare the server; `run` serves.

        Args:
            bound: Bound socket, which the server closes at its end.
            url: Its URL.
            app: The application.
            worker: Decodes the requests; it starts and stops with the server.
            access_log: Form of the lines of the access log.
        """
        limited = ConnectionLimit(app, lambda: len(self.server_state.connections), _MAX_CONNECTIONS)
        super().__init__(
            uvicorn.Config(
                AccessLog(limited, access_log),
                # Python's logging is configured by the command.
                log_config=None,
                access_log=False,
                http=DeadlineProtocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_HARD_MAX_CONNECTIONS,
                timeout_keep_alive=round(HEADER_SECONDS),
                timeout_graceful_shutdown=round(GRACE_SECONDS) + 2,
            )
        )
        self._socket = bound
        self.url = url
        self.worker = worker

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until shutdown, then stop the worker."""
        try:
            super().run(sockets or [self._socket])
        finally:
            self._socket.close()
            self.worker.stop(grace=0.0)
            # A running forward pass or load cannot be stopped; the process may end before it does.
            self.worker.join(GRACE_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and start the worker."""
        await super().startup(sockets)
        self.worker.start()
        _log.info(f"Serving {self.worker.base} at {self.url} (Ctrl-C stops)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse waiting requests, leave running ones `GRACE_SECONDS`, then shut down."""
        self.worker.stop(GRACE_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down on a signal, without raising it again afterwards as uvicorn does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
