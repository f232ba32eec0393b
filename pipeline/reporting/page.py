"""The frame of an HTML page that stands alone, and how it is written."""

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
        written: The time that the page bears, in UTC.
        sections: HTML of its parts.
        policy: Content security policy, which has to allow the script if there is one.
        style: CSS beside that of all pages.
        script: JavaScript that runs at the end.
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
    # Names of files need not be text.
    write_file(path, page.encode("utf-8", "backslashreplace"))
