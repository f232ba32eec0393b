"""The files of the web page, which are part of the package."""

import importlib.resources
from dataclasses import dataclass
from typing import Final

_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "answer.js": "text/javascript; charset=utf-8",
    "strengths.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
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
            path="/" if name == "index.html" else f"/{name}",
            content=(folder / name).read_bytes(),
            media_type=media_type,
        )
        for name, media_type in _TYPES.items()
    ]
