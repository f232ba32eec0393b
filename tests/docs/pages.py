"""What a page of the documentation says that a program can run, and whether it does."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RUN: Final = ("bash", "python")
OUTPUT: Final = ("text", "json")
LANGUAGES: Final = (*RUN, *OUTPUT, "yaml")

_BLOCK: Final = re.compile(
    r"(?:^<!--(?P<note>(?:(?!-->).)*)-->\n+)?"
    r"^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$(?P<after>\n*)",
    re.MULTILINE | re.DOTALL,
)
_BARS: Final = re.compile(r"^[A-Za-z ]+: +(\d+%\||\d[\d.]*[kMG]?\w* \[)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        language: What follows the fence.
        text: What is inside of it.
        line: Line of the page that the fence is on, from 1.
        note: The HTML comment before it, which tells how to run it, or nothing.
        output: What the page shows it to print, or None where it shows nothing.
    """

    language: str
    text: str
    line: int
    note: str = ""
    output: str | None = None

    @property
    def exit_code(self) -> int:
        """The code it ends with."""
        return int(self._after("exits with") or 0)

    @property
    def background_until(self) -> str | None:
        """The address that answers once it is up, where it runs beside the blocks after it."""
        return self._after("in the background until")

    def _after(self, words: str) -> str | None:
        return self.note.removeprefix(words).strip() if self.note.startswith(words) else None


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page; what comes right after a command is its output."""
    text = page.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(text))
    outputs = set()
    for number, match in enumerate(found):
        if number in outputs:
            continue
        following = found[number + 1] if number + 1 < len(found) else None
        output = None
        if (
            match["language"] in RUN
            and following is not None
            and following["language"] in OUTPUT
            and following.start() == match.end()
        ):
            outputs.add(number + 1)
            output = following["text"]
        yield Block(
            language=match["language"],
            text=match["text"],
            line=text.count("\n", 0, match.start("text")),
            note=(match["note"] or "").strip(),
            output=output,
        )


def differs(shown: str, out: str, err: str = "") -> str | None:
    """Compare what a page shows with what was printed; return the difference, or None.

    `…` stands for anything in a line, and for any lines where it is alone on one. What goes to
    standard error comes first, as it is told while the work is done, and need not all be shown.
    """
    said = [line for line in _lines(err) if not _BARS.match(line)]
    printed = [(line, False) for line in said] + [(line, True) for line in _lines(out)]
    at, gap = 0, False
    for wanted in _lines(shown):
        if wanted.strip() == "…":
            gap = True
            continue
        pattern = ".*".join(re.escape(part) for part in wanted.split("…"))
        while at < len(printed):
            line, needed = printed[at]
            at += 1
            if re.fullmatch(pattern, line):
                break
            if needed and not gap:
                return f"shown:   {wanted}\nprinted: {line}"
        else:
            return f"shown, not printed: {wanted}\nstandard output:\n{out}\nerror:\n{err}"
        gap = False
    left = [line for line, needed in printed[at:] if needed]
    return f"printed, not shown: {left}" if left and not gap else None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in re.split(r"[\r\n]", text) if line.strip()]
