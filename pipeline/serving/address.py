"""The address a server listens on, taken before anything is loaded."""

import socket
from dataclasses import dataclass

from mav.cache_schema.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Address:
    """A socket that is bound but does not listen yet.

    Attributes:
        socket: The socket.
        url: What leads to it.
    """

    socket: socket.socket
    url: str


def take_address(host: str, port: int) -> Address:
    """Bind a socket.

    Args:
        host: Name or number of an address of this machine.
        port: Port, or 0 for any that is free.

    Raises:
        UsageError: The address is taken or not this machine's.
    """
    bound = _bound(host, port)
    named = f"[{host}]" if ":" in host else host
    return Address(socket=bound, url=f"http://{named}:{bound.getsockname()[1]}")


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(
            f"--host: got {host!r}, which is not an address of this machine: {error}"
        ) from error
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
