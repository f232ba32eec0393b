"""The page of a server with several heads in headless Chromium: a slider for each."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from tests.serving.screenshot import CHROMIUM, launch
from tests.support.heads import save_random_head
from tests.support.limits import EVENT
from tests.support.server import CHAT, chat_body, http, running
from tests.support.tiny import make_cache, save_base, tiny_base

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


def test_each_head_has_a_slider_and_all_are_sent(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, tiny_base(), pairs=6)
    head = {
        "kind": save_random_head(cache, tmp_path / "a"),
        "careful": save_random_head(cache, tmp_path / "b", kind="unembedding"),
    }
    base = str(save_base(tiny_base(), tmp_path / "base"))
    alpha = {"kind": 1.0, "careful": 0.5}
    logged: list[str] = []
    with (
        running(head=head, bases=(base,), alpha=alpha) as server,
        sync_playwright() as started,
        http(server) as web,
    ):
        browser = launch(started)
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(1000 * EVENT)
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector("#base option", state="attached")
        numbers = {name: page.get_by_label(f"Alpha of {name}, number") for name in alpha}
        assert {name: one.input_value() for name, one in numbers.items()} == {
            "kind": "1",
            "careful": "0.5",
        }
        assert page.get_by_label("Alpha, slider").count() == 0
        page.get_by_label("Alpha of careful, slider").focus()
        page.keyboard.press("ArrowRight")
        assert numbers["careful"].input_value() == "0.6"
        numbers["kind"].fill("-1.5")
        assert page.get_by_label("Alpha of kind, slider").input_value() == "-1.5"
        page.get_by_label("beside").fill("0, 2")
        page.get_by_label("Prompt").fill("Hi there")
        page.get_by_label("Tokens").fill("8")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector("#send:enabled")
        titles = page.locator(".answer h2").all_text_contents()
        assert [title[1:] for title in titles] == [
            " = 0, the base",
            " = kind -1.5, careful 0.6",
            " = kind -3, careful 1.2",
        ]
        texts: list[Any] = page.locator(".answer .text").all_text_contents()
        sent = [0, {"kind": -1.5, "careful": 0.6}, {"kind": -3, "careful": 1.2}]
        found = [web.post(CHAT, json=chat_body(alpha=one)).json() for one in sent]
        assert texts == [one["choices"][0]["message"]["content"] for one in found]
        assert page.locator(".answer").nth(0).locator(".raised, .lowered").count() == 0
        assert page.locator(".answer").nth(2).locator(".raised, .lowered").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert logged == []
