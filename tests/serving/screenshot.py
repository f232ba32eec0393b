"""A picture of the page: `python -m tests.serving.screenshot HEAD docs/page.png PROMPT`."""

import sys
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import sync_playwright

from tests.support.running.browser import launch
from tests.support.running.limits import EVENT
from tests.support.running.server import running

SIZE: Final = {"width": 1200, "height": 900}


def ask_and_shoot(page: Any, target: Path, prompt: str, alphas: str, tokens: int) -> None:
    """Request completions at alpha 1 and others; picture them with the pointer on a token.

    Args:
        page: The page, opened.
        target: File of the picture.
        prompt: What to ask.
        alphas: The other strengths.
        tokens: Most tokens of a completion.
    """
    page.wait_for_selector("#base option", state="attached")
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Beside").fill(alphas)
    page.get_by_label("Tokens").fill(str(tokens))
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector("#answers[aria-busy=false]")
    page.locator(".answer").last.locator(".token[title]").first.hover()
    page.screenshot(path=target)


def main(head: str, target: Path, prompt: str) -> None:
    """Serve a head, and picture its page with answers to a prompt."""
    with running(head=head, dtype="bfloat16") as server, sync_playwright() as started:
        browser = launch(started)
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(1000 * EVENT)
        page.goto(server.url)
        page.get_by_label("Temperature").fill("0")
        ask_and_shoot(page, target, prompt, "0, 1.5", 48)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
