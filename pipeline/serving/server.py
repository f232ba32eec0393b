"""`mav serve`: bind the address, load a head and its first base, and serve until interrupted."""

import socket
from typing import TYPE_CHECKING

from mav.cache_schema.errors import UsageError
from mav.pipeline.serving.options import ServeOptions

if TYPE_CHECKING:
    from mav.pipeline.serving.http_server import HttpServer


def serve(options: ServeOptions) -> None:
    """Load, listen, and respond until SIGINT or SIGTERM.

    Args:
        options: All settings.

    Raises:
        MAVError: Something cannot be loaded, head and bases are incompatible, or the address
            cannot be bound.
    """
    load_server(options).run()


def load_server(options: ServeOptions) -> "HttpServer":
    """Bind the address, load head and first base, and return the server; its `run` serves.

    Raises:
        MAVError: See `serve`.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"mav serve needs {error.name}, which is not installed: pip install 'mav-align[serve]'"
        ) from error
    # Before loading, which may take minutes.
    bound = _bind(options.host, options.port)
    try:
        return _load_on(bound, options)
    except BaseException:
        bound.close()
        raise


def _load_on(bound: socket.socket, options: ServeOptions) -> "HttpServer":
    from mav.pipeline.base.source import resolve_base
    from mav.pipeline.decoding.inference import MAVInference
    from mav.pipeline.serving.app import build_app
    from mav.pipeline.serving.bases import check_bases, renamed, served_bases
    from mav.pipeline.serving.http_server import HttpServer
    from mav.pipeline.serving.metrics import Metrics
    from mav.pipeline.serving.worker import Worker

    sources = [resolve_base(base, options.gguf_file, options.revision) for base in options.bases]
    bases = served_bases(sources)
    if len(sources) > 1:
        check_bases(options.head, sources[1:], options)
    mav = MAVInference.from_options(
        options.head, options.bases[0] if options.bases else None, options
    )
    if not bases:
        assert mav.base.source is not None
        bases = served_bases([mav.base.source])
    bases = renamed(bases, options.served_model_name)
    metrics = Metrics()
    worker = Worker(mav, bases, options=options, metrics=metrics)
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{bound.getsockname()[1]}"
    app = build_app(options, worker, metrics)
    return HttpServer(bound, url, app, worker, access_log=options.access_log)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, but does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(
            f"host: got {host!r}, which is not an address of this machine: {error}"
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"port: {host}:{port} cannot be listened on: {error.strerror}; choose another, or "
            f"0 for any that is free"
        ) from error
    return bound
