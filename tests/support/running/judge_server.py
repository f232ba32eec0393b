"""A chat completions server in a thread, which answers as a test says."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.support.running.limits import EVENT

PATH: Final = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server sends.

    Attributes:
        status: HTTP status.
        body: Bytes of the body.
        headers: Further headers.
        hold: Awaited before anything is sent.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


@dataclass(kw_only=True)
class JudgeServer:
    """A running server.

    Attributes:
        url: Its base URL.
        asked: The message of every request, in the order they came.
        bodies: The whole of every request.
        authorizations: Their header of that name.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


def says(text: str | None) -> Reply:
    """A chat completion with this text."""
    completion = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Reply(body=json.dumps(completion).encode())


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    """An error in OpenAI's form; `_` in a header's name stands for `-`."""
    body = json.dumps({"error": {"message": message}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body=body, headers=named)


@contextlib.contextmanager
def judging(answer: Callable[[str, int], Reply]) -> Iterator[JudgeServer]:
    """Serve while the context is open.

    Args:
        answer: Gives the reply to a message, also told how many requests came before.
    """
    server, lock = JudgeServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = EVENT

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.asked)
                server.asked.append(body["messages"][0]["content"])
                server.bodies.append(body)
                server.authorizations.append(self.headers.get("Authorization"))
            reply = fails(404) if self.path != PATH else answer(server.asked[number], number)
            if reply.hold is not None:
                reply.hold.wait(EVENT)
            with contextlib.suppress(OSError):  # a client that has gone
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": len(reply.body)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(reply.body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, name="judge-server")
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join(EVENT)
