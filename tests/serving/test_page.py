"""The page in headless Chromium: columns, colours, keyboard, errors, phones, the key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import sync_playwright

from mav.pipeline.serving.http_server import HttpServer
from tests.serving.screenshot import CHROMIUM, ask_and_shoot, launch
from tests.support.limits import EVENT, wait_until
from tests.support.server import http, running

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]
WIDE: Final = {"width": 1200, "height": 900}
NARROW: Final = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        chromium = launch(started)
        yield chromium
        chromium.close()


class Opened:
    """The page in a window of its own, and the browser's messages and errors."""

    def __init__(self, browser: Any, server: HttpServer, viewport: dict[str, int]) -> None:
        self.logged: list[str] = []
        self.context = browser.new_context(viewport=viewport)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * EVENT)
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on(
            "requestfailed", lambda request: self.logged.append(f"{request.url}: {request.failure}")
        )
        self.page.goto(server.url)

    def begun(self) -> "Opened":
        self.page.wait_for_selector("#base option", state="attached")
        return self

    def ask(self, prompt: str = "How do I mend a kite?", tokens: int = 12) -> None:
        self.page.get_by_label("Prompt").fill(prompt)
        self.page.get_by_label("Tokens").fill(str(tokens))
        self.page.get_by_role("button", name="Ask").click()
        self.done()

    def done(self) -> None:
        self.page.wait_for_selector("#send:enabled")

    def texts(self) -> list[str]:
        texts: list[str] = self.page.locator(".answer .text").all_text_contents()
        return texts


@pytest.fixture
def opened(browser: Any, server: HttpServer) -> Iterator[Opened]:
    window = Opened(browser, server, WIDE).begun()
    yield window
    window.context.close()


def test_three_strengths_side_by_side_with_what_the_head_changed(
    opened: Opened, server: HttpServer
) -> None:
    page = opened.page
    page.get_by_label("Alpha, number").fill("3")
    page.get_by_label("beside").fill("0, -2")
    opened.ask()
    titles = page.locator(".answer h2").all_text_contents()
    assert [title[1:] for title in titles] == [" = -2", " = 0, the base", " = 3"]
    boxes = [page.locator(".answer").nth(number).bounding_box() for number in range(3)]
    assert len({box["y"] for box in boxes}) == 1, "the columns are not side by side"
    assert len({box["x"] for box in boxes}) == 3
    base, strong = page.locator(".answer").nth(1), page.locator(".answer").nth(2)
    assert base.locator(".token").count() > 0
    assert base.locator(".raised, .lowered").count() == 0
    assert strong.locator(".raised, .lowered").count() > 0
    colours = strong.locator(".token").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) > 2
    assert "with the head" in strong.locator(".token").first.get_attribute("title")
    with http(server) as web:
        body = {
            "model": "first",
            "messages": [{"role": "user", "content": "How do I mend a kite?"}],
            "max_tokens": 12,
            "temperature": 0,
            "alpha": 3,
        }
        response = web.post("/v1/chat/completions", json=body).json()
    assert opened.texts()[2] == response["choices"][0]["message"]["content"]
    assert "Alpha 3:" in page.locator("#announce").text_content()
    assert "a second" in strong.locator(".rate").text_content()
    assert opened.logged == []


def test_slider_and_number_are_one(opened: Opened) -> None:
    page = opened.page
    slider, number = page.get_by_label("Alpha, slider"), page.get_by_label("Alpha, number")
    assert number.input_value() == "1"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert number.input_value() == "1.1"
    number.fill("-1.5")
    assert slider.input_value() == "-1.5"


def test_everything_can_be_done_with_the_keyboard(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("Tokens").fill("12")
    page.get_by_label("Prompt").focus()
    page.keyboard.type("Hi there")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".answer")
    opened.done()
    page.get_by_role("button", name="Ask").focus()
    page.keyboard.press("Tab")  # past the button that is disabled, to the first answer
    assert page.evaluate("document.activeElement.className") == "text"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.at").count() == 1
    assert "base" in page.locator("#detail").text_content()
    page.keyboard.press("Tab")
    assert page.locator(".token.at").count() == 0
    unnamed = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter(one => !one.labels.length && !one.ariaLabel).map(one => one.id)"
    )
    assert unnamed == []


def test_another_base_answers_when_chosen(opened: Opened, server: HttpServer) -> None:
    opened.ask()
    first = opened.texts()
    opened.page.locator("#base").select_option("second")
    opened.ask()
    assert opened.texts() != first
    wait_until(lambda: server.worker.base == "second")
    opened.page.locator("#base").select_option("first")
    opened.ask()
    assert opened.texts() == first
    assert opened.logged == []


def test_errors_are_shown_as_text(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("beside").fill("0, strong")
    opened.ask()
    assert "strong" in page.get_by_role("alert").text_content()
    page.get_by_label("beside").fill("0")
    opened.ask("<img src=x onerror=alert(1)> " + "word " * 3000)
    failed = page.locator(".answer .failed")
    assert failed.count() == 2
    assert "tokens" in failed.first.text_content()
    assert page.locator("img").count() == 0


def test_stop_ends_the_answers(opened: Opened, server: HttpServer) -> None:
    page = opened.page
    page.get_by_label("Prompt").fill("Hi")
    page.get_by_label("Tokens").fill("200")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Stop").click()
    opened.done()
    wait_until(lambda: not server.worker.rows)
    assert "stopped" in page.locator(".rate").first.text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(browser: Any, server: HttpServer, scheme: str) -> None:
    window = Opened(browser, server, NARROW).begun()
    window.page.emulate_media(color_scheme=scheme)
    window.ask("a" * 80)
    width = "document.documentElement.scrollWidth"
    assert window.page.evaluate(width) <= NARROW["width"]
    text, ground = window.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (luminance(text) > luminance(ground)) == (scheme == "dark")
    assert contrast(text, ground) > 7
    window.context.close()


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(…)`, after WCAG 2."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_the_key_is_asked_for_and_kept(browser: Any, head: str, bases: tuple[str, str]) -> None:
    with running(head=head, bases=bases[:1], api_key="sesame") as server:
        window = Opened(browser, server, WIDE)
        window.page.wait_for_selector("#key-form:not([hidden])")
        assert "API key" in window.page.get_by_role("alert").text_content()
        window.page.get_by_label("This server asks for its API key").fill("sesame")
        window.page.get_by_role("button", name="Use it").click()
        window.begun().ask()
        assert all(window.texts())
        assert window.page.locator("#key-form").is_hidden()
        window.context.close()


def test_what_the_page_may_do_is_little(server: HttpServer) -> None:
    with http(server) as web:
        for path in ("/", "/page.js", "/answer.js", "/strengths.js", "/page.css", "/icon.svg"):
            response = web.get(path)
            assert response.status_code == 200
            assert "script-src 'self';" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")
            assert "innerHTML" not in response.text


def test_a_picture_of_it(browser: Any, opened: Opened, tmp_path: Path) -> None:
    target = tmp_path / "page.png"
    ask_and_shoot(opened.page, target, "How do I mend a kite?", "0, 2", 40)
    assert 10_000 < target.stat().st_size < 300_000
