"""Several turns on the page, copies of answers, and links that keep what stands there."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from mav.pipeline.serving.http_server import HttpServer
from tests.support.running.browser import BROWSER, Opened
from tests.support.running.limits import wait_until
from tests.support.running.server import CHAT, http

pytestmark = BROWSER
FIRST, SECOND, THIRD = "How do I mend a kite?", "And a <b>sail</b>?", "Why?"


@pytest.fixture
def opened(browser: Any, server: HttpServer) -> Iterator[Opened]:
    window = Opened(browser, server.url, frozen=True).begun()
    yield window
    window.close()


def go_on(window: Opened, column: int) -> str:
    """Continue from the answer of a column; return it."""
    answer = window.texts()[column]
    window.page.get_by_role("button", name="Continue from this answer").nth(column).click()
    return answer


def said(window: Opened) -> list[str]:
    """The texts of the earlier turns."""
    texts: list[str] = window.page.locator("#turns p").all_text_contents()
    return texts


def fields(window: Opened) -> dict[str, str]:
    found: dict[str, str] = window.page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#ask input, #ask textarea, #ask select,"
        " .number')].map(one => [one.id || 'alpha', one.value]))"
    )
    return found


def test_the_answer_that_is_chosen_goes_on(opened: Opened, server: HttpServer) -> None:
    page = opened.page
    opened.ask(FIRST)
    first = go_on(opened, 2)
    assert said(opened) == [FIRST, first]
    assert "2" in page.locator("#turns .reply h2").text_content()
    assert fields(opened)["prompt"] == ""
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert page.locator(".answer").count() == 0
    opened.ask(SECOND)
    history = [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": first},
        {"role": "user", "content": SECOND},
    ]
    bodies = opened.bodies(6)[3:]
    assert [body["messages"] for body in bodies] == [history] * 3
    with http(server) as web:
        for body, text in zip(bodies, opened.texts(), strict=True):
            answer = web.post(CHAT, json={**body, "stream": False}).json()
            assert answer["choices"][0]["message"]["content"] == text
    page.get_by_label("Alpha, number").fill("3")
    opened.pass_time()
    opened.done()
    assert opened.bodies(7)[-1]["messages"] == history
    second = go_on(opened, 0)
    assert said(opened) == [FIRST, first, SECOND, second]
    opened.pass_time(10_000)
    page.get_by_label("Alpha, number").fill("2")
    opened.pass_time(10_000)
    opened.bodies(7)
    page.get_by_role("button", name="Go back to this prompt").nth(1).click()
    assert said(opened) == [FIRST, first]
    assert fields(opened)["prompt"] == SECOND
    page.get_by_role("button", name="New conversation").click()
    assert said(opened) == []
    assert page.locator("#conversation").is_hidden()
    opened.ask(THIRD)
    assert opened.bodies(9)[-1]["messages"] == [{"role": "user", "content": THIRD}]
    assert opened.logged == []


def test_what_was_typed_meanwhile_is_the_next_turn(opened: Opened) -> None:
    opened.ask(FIRST)
    opened.page.get_by_label("Prompt").fill(SECOND)
    go_on(opened, 0)
    assert fields(opened)["prompt"] == SECOND
    assert opened.page.locator("#edited").is_hidden()


def test_a_link_keeps_everything_and_asks_nothing(
    browser: Any, opened: Opened, server: HttpServer
) -> None:
    page = opened.page
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Alpha, number").fill("-1.25")
    page.get_by_label("Beside").fill("0, 3")
    opened.ask(FIRST, tokens=9)
    first = go_on(opened, 1)
    opened.ask(SECOND, tokens=9)
    page.locator("#base").select_option("second")
    page.get_by_role("button", name="Copy link").click()
    other = Opened(browser, page.url, frozen=True).begun()
    assert fields(other) == {
        "prompt": SECOND,
        "alpha": "-1.25",
        "compare": "0, 3",
        "tokens": "9",
        "temperature": "0.5",
        "seed": "7",
        "base": "second",
    }
    assert said(other) == [FIRST, first]
    assert other.page.locator("#notice").is_hidden()
    other.pass_time(10_000)
    assert other.bodies(0) == []
    other.page.locator("#base").select_option("first")
    other.press_ask()
    other.done()
    assert other.bodies(3) == opened.bodies(6)[3:]
    assert other.texts() == opened.texts()
    assert other.logged == []
    other.close()


def test_the_address_follows_what_is_asked(opened: Opened) -> None:
    def address() -> dict[str, str]:
        return {key: only for key, (only,) in parse_qs(opened.page.url.partition("#")[2]).items()}

    assert "#" not in opened.page.url
    opened.ask(FIRST)
    assert (address()["prompt"], address()["alpha"]) == (FIRST, "1")
    opened.page.get_by_label("Alpha, number").fill("2.5")
    opened.pass_time()
    assert address()["alpha"] == "2.5"
    first = go_on(opened, 0)
    assert json.loads(address()["turns"]) == [
        {"question": FIRST, "answer": first, "label": "0, the base"}
    ]
    opened.page.get_by_label("Prompt").fill("long " * 20_000)
    opened.page.get_by_role("button", name="Copy link").click()
    assert "Too long" in opened.page.locator("#link").text_content()
    opened.pass_time(10_000)
    assert opened.page.locator("#link").text_content() == "Copy link"


def test_a_link_that_does_not_fit_this_server(browser: Any, server: HttpServer) -> None:
    given = {
        "prompt": "<img src=x>",
        "alpha": "strong",
        "alpha.kind": "1",
        "tokens": "99999",
        "seed": "",
        "temperature": "1",
        "base": "third",
        "turns": '[{"question": 1}]',
    }
    window = Opened(browser, f"{server.url}#{urlencode(given)}").begun()
    notice = window.page.locator("#notice").text_content()
    for part in ("alpha “strong”", "alpha.kind", "tokens “99999”", "seed", "“third”", "turns"):
        assert part in notice
    assert window.alert() == ""
    found = fields(window)
    assert (found["prompt"], found["temperature"]) == ("<img src=x>", "1")
    assert (found["alpha"], found["tokens"], found["seed"]) == ("1", "96", "0")
    assert said(window) == []
    # Another link in the same window.
    window.ask("Hi")
    window.page.evaluate("location.hash = 'prompt=Ho&alpha=2'")
    wait_until(lambda: fields(window)["prompt"] == "Ho")
    assert window.page.locator(".answer").count() == 0
    assert fields(window)["alpha"] == "2"
    window.close()


@pytest.mark.parametrize("script", ["", "Object.defineProperty(navigator, 'clipboard', {})"])
def test_an_answer_is_copied(browser: Any, server: HttpServer, script: str) -> None:
    allowed = ["clipboard-read", "clipboard-write"]
    window = Opened(browser, server.url, frozen=True, script=script, permissions=allowed).begun()
    page = window.page
    window.ask()
    button = page.locator(".answer").nth(1).get_by_role("button", name="Copy")
    button.click()
    wait_until(lambda: page.locator("#announce").text_content() == "Copied")
    assert page.evaluate("document.activeElement.textContent") == "Copied"
    page.get_by_label("Prompt").fill("")
    page.keyboard.press("Control+V")
    assert fields(window)["prompt"] == window.texts()[1]
    window.pass_time(10_000)
    assert page.locator(".answer button").all_text_contents()[2] == "Copy"
    window.close()


def test_where_nothing_can_be_copied_the_answer_is_selected(
    browser: Any, server: HttpServer
) -> None:
    script = "Object.defineProperty(navigator, 'clipboard', {}); document.execCommand = () => false"
    window = Opened(browser, server.url, frozen=True, script=script).begun()
    window.ask()
    window.page.locator(".answer").nth(1).get_by_role("button", name="Copy").click()
    window.page.get_by_role("button", name="Selected: press Ctrl+C").wait_for()
    assert window.page.evaluate("getSelection().toString()") == window.texts()[1]
    window.page.get_by_role("button", name="Copy link").click()
    window.page.get_by_role("button", name="Copy it from the address").wait_for()
    window.close()
