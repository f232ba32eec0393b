"""The frame of a self-contained HTML page, and writing it to a file."""

from datetime import datetime
from pathlib import Path

from mav.pipeline.reporting.plots import STYLE, text
from mav.pipeline.runtime.durable_files import write_file


def html_page(
    *,
    title: str,
    heading: str,
    subject: str,
    written: datetime,
    sections: tuple[str, ...],
    policy: str,
    style: str = "",
    script: str = "",
) -> str:
    """Return a page that loads nothing.

    Args:
        title: Plain text of the window's title.
        heading: HTML of the heading.
        subject: HTML of what the page is about, beside its time.
        written: Time shown on the page, in UTC.
        sections: HTML of its parts.
        policy: Content security policy, which must allow the script, if any.
        style: Additional CSS.
        script: JavaScript to run at the end.
    """
    main = "\n".join(sections)
    end = f"<script>{script}</script>\n" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{text(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<header>
<h1>{heading}</h1>
<p>{subject} · <time datetime="{written:%Y-%m-%dT%H:%MZ}">\
{written:%Y-%m-%d %H:%M} UTC</time></p>
</header>
<main>
{main}
</main>
{end}</body>
</html>
"""


def write_page(path: Path, page: str) -> None:
    """Write a page to a file, whole or not at all."""
    # File names need not be valid Unicode.
    write_file(path, page.encode("utf-8", "backslashreplace"))
