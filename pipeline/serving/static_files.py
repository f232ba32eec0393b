"""The files of the web page, which are part of the package."""

import importlib.resources
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Sent with every response."""


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """A file of the web page.

    Attributes:
        path: Path of its URL.
        content: Its bytes.
        media_type: Its `Content-Type`.
    """

    path: str
    content: bytes
    media_type: str


def page_files() -> list[PageFile]:
    """Return all files of the page."""
    folder = importlib.resources.files("mav.pipeline.serving") / "page"
    return [
        PageFile(
            path="/" if file.name == "index.html" else f"/{file.name}",
            content=file.read_bytes(),
            media_type=_TYPES[PurePath(file.name).suffix],
        )
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if PurePath(file.name).suffix in _TYPES
    ]
