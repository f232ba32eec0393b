"""The page in headless Chromium."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.running.limits import EVENT, wait_until

CHROMIUM: Final = Path("/usr/bin/chromium")
BROWSER: Final = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]
"""Marks of tests that need it."""
WIDE: Final = {"width": 1200, "height": 900}
NARROW: Final = {"width": 360, "height": 740}
PAUSE: Final = 300
"""Milliseconds without a change after which the page asks anew."""


def launch(playwright: Any) -> Any:
    """Start Chromium."""
    return playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])


class Opened:
    """The page in a window of its own.

    Attributes:
        page: The page.
        logged: The browser's messages and errors, except for requests that the page itself ended.
        asked: The bodies of the completions it has asked for.
    """

    def __init__(
        self,
        browser: Any,
        url: str,
        *,
        viewport: dict[str, int] = WIDE,
        frozen: bool = False,
        script: str = "",
        **context: Any,
    ) -> None:
        """Open it.

        Args:
            browser: Chromium.
            url: Its address.
            viewport: Size of the window.
            frozen: Whether the page's clock goes on only where `pass_time` says so.
            script: JavaScript to run before the page's own.
            context: Further settings of the window.
        """
        self.logged: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.context = browser.new_context(viewport=viewport, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * EVENT)
        if frozen:
            self.page.clock.install(time=0)
            self.page.clock.pause_at(1000)
        if script:
            self.page.add_init_script(script)
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._requested)
        self.page.goto(url)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":
            self.logged.append(f"{request.url}: {request.failure}")

    def _requested(self, request: Any) -> None:
        if request.method == "POST":
            self.asked.append(json.loads(request.post_data))

    def begun(self) -> "Opened":
        """Wait until the page knows what the server has."""
        self.page.wait_for_selector("#base option", state="attached")
        return self

    def ask(self, prompt: str = "How do I mend a kite?", tokens: int = 12) -> None:
        """Ask, and wait for the answers."""
        self.page.locator("#prompt").fill(prompt)
        # Settings are folded up on a phone.
        self.page.evaluate("document.getElementById('settings').open = true")
        self.page.get_by_label("Tokens").fill(str(tokens))
        self.press_ask()
        self.done()

    def press_ask(self) -> None:
        """Ask for what stands in the fields."""
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def pass_time(self, milliseconds: int = PAUSE) -> None:
        """Let the page's clock go on, and the page hear of it."""
        self.page.clock.run_for(milliseconds)

    def done(self) -> None:
        """Wait until no answer is being written."""
        self.page.wait_for_selector("#answers[aria-busy=false]")

    def bodies(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many completions were asked for in all, and return their bodies."""
        # Messages of the browser come in while something is asked of it.
        wait_until(lambda: self.page.evaluate("true") and len(self.asked) >= count)
        assert len(self.asked) == count
        return self.asked

    def texts(self) -> list[str]:
        """Return the texts of the answers."""
        texts: list[str] = self.page.locator(".answer .text").all_text_contents()
        return texts

    def titles(self) -> list[str]:
        """Return the strengths over the answers."""
        titles: list[str] = self.page.locator(".answer h2").evaluate_all(
            "all => all.map(one => one.firstChild.textContent.replace(/^.* =/, '').trim())"
        )
        return titles

    def alert(self) -> str:
        """Return the error that is shown, empty for none."""
        error = self.page.locator("#error")
        return str(error.text_content()) if error.is_visible() else ""

    def width(self) -> int:
        """Return how wide the page is, in pixels."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def close(self) -> None:
        """Close the window."""
        self.context.close()


def scrolling_tables(page: Any) -> list[str]:
    """Check that every table of a report can be read, however narrow the page is.

    Args:
        page: The report, opened, with nothing folded up.

    Returns:
        The captions of those that scroll in their boxes.
    """
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    tables = page.evaluate(
        """[...document.querySelectorAll(".wide")].map((box) => {
          const lines = (cell) => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size;
          };
          const cells = [...box.querySelectorAll("tbody :is(td, th)")];
          box.scrollLeft = 1e6;
          return {
            caption: box.querySelector("caption").textContent,
            facts: box.querySelector("table").className === "facts",
            lines: Math.max(...cells.map(lines)),
            width: Math.min(...cells.filter(({ tagName }) => tagName === "TD")
              .map((cell) => cell.getBoundingClientRect().width)),
            scrolled: box.scrollLeft,
            first: cells[0].getBoundingClientRect().left - box.getBoundingClientRect().left,
            focusable: box.tabIndex === 0,
          };
        })"""
    )
    assert tables
    for one in tables:
        if one["facts"]:
            assert one["scrolled"] == 0, one
            assert one["width"] >= min(300, page.viewport_size["width"] - 60), one
        else:
            assert one["lines"] == 1, one
            assert one["focusable"], one
        assert abs(one["first"]) <= 1, f"the names of the rows are out of sight: {one}"
    return [one["caption"] for one in tables if one["scrolled"]]
