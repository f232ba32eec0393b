"""The HTTP server: its socket, its signals, its end."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from cache_schema.errors import UsageError
from pipeline.serving.options import ServeOptions
from pipeline.serving.worker import Worker

GRACE_SECONDS: Final = 5.0
"""How long answers may still be written after the server was told to stop."""
_MOST_CONNECTIONS: Final = 512
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class HttpServer(uvicorn.Server):
    """Serves until a signal comes or `should_exit` is set; the end is no failure.

    Attributes:
        url: Where it is.
        worker: What decodes.
    """

    def __init__(
        self, options: ServeOptions, app: ASGIApp, worker: Worker, say: Callable[[str], None]
    ) -> None:
        """Take the address.

        Args:
            options: Settings of the server.
            app: What answers.
            worker: What decodes; it starts and stops with the server.
            say: Told the URL once the server listens.

        Raises:
            UsageError: The address is taken or not this machine's.
        """
        super().__init__(
            uvicorn.Config(
                app,
                # What there is to say is said here; the rest goes to Python's logging.
                log_config=None,
                access_log=False,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=round(GRACE_SECONDS) + 2,
            )
        )
        self._socket = _bound(options.host, options.port)
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self.worker, self._say = worker, say

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
        self._say(f"Serving {self.worker.base} at {self.url} (Ctrl-C stops)")

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


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host: got {host!r}, which is no address here: {error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UsageError(
            f"--port: {host}:{port} cannot be listened on: {error.strerror}; choose another, or "
            f"0 for any that is free"
        ) from error
    return found
