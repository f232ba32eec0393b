"""The page of a server with several heads in headless Chromium: a slider for each."""

from pathlib import Path
from typing import Any

from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.browser import BROWSER, NARROW, Opened
from tests.support.running.server import CHAT, chat_body, http, running
from tests.support.steering.heads import save_random_head

pytestmark = BROWSER


def test_each_head_has_a_slider_and_all_are_sent(tmp_path: Path, browser: Any) -> None:
    cache = make_cache(tmp_path, tiny_base(), pairs=6)
    head = {
        "kind": save_random_head(cache, tmp_path / "a"),
        "careful": save_random_head(cache, tmp_path / "b", kind="unembedding"),
    }
    base = str(save_base(tiny_base(), tmp_path / "base"))
    alpha = {"kind": 1.0, "careful": 0.5}
    with running(head=head, bases=(base,), alpha=alpha) as server, http(server) as web:
        window = Opened(browser, server.url, viewport=NARROW, frozen=True).begun()
        page = window.page
        numbers = {name: page.get_by_label(f"Alpha of {name}, number") for name in alpha}
        assert {name: one.input_value() for name, one in numbers.items()} == {
            "kind": "1",
            "careful": "0.5",
        }
        assert page.get_by_label("Alpha, slider").count() == 0
        assert page.locator(".ticks").count() == 2
        assert "the server's own: kind 1, careful 0.5" in page.locator("#range").text_content()
        page.get_by_label("Alpha of careful, slider").focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        assert numbers["careful"].input_value() == "0.6"
        numbers["kind"].fill("-1.5")
        assert page.get_by_label("Alpha of kind, slider").input_value() == "-1.5"
        page.evaluate("document.getElementById('settings').open = true")
        page.get_by_label("Beside").fill("0, 2")
        window.ask("Hi there", tokens=8)
        assert window.titles() == [
            "0, the base",
            "kind \N{MINUS SIGN}1.5, careful 0.6",
            "kind \N{MINUS SIGN}3, careful 1.2",
        ]
        sent = [0, {"kind": -1.5, "careful": 0.6}, {"kind": -3, "careful": 1.2}]
        found = [web.post(CHAT, json=chat_body(alpha=one)).json() for one in sent]
        assert window.texts() == [one["choices"][0]["message"]["content"] for one in found]
        assert page.locator(".answer").nth(0).locator(".raised, .lowered").count() == 0
        assert page.locator(".answer").nth(2).locator(".raised, .lowered").count() > 0
        assert window.width() == NARROW["width"]
        numbers["kind"].fill("2")
        window.pass_time()
        window.done()
        # The base's column stays; both of the sliders' strengths are asked for anew.
        assert [body["alpha"] for body in window.bodies(5)[3:]] == [
            {"kind": 2, "careful": 0.6},
            {"kind": 4, "careful": 1.2},
        ]
        numbers["kind"].fill("60")
        numbers["kind"].press("Tab")
        window.pass_time()
        assert window.alert() == "Beside: 2 times kind 60, careful 0.6 is beyond 100"
        numbers["kind"].fill("2")
        page.get_by_role("button", name="Copy link").click()
        other = Opened(browser, page.url, viewport=NARROW).begun()
        texts = {name: f"Alpha of {name}, number" for name in alpha}
        assert other.page.get_by_label(texts["kind"]).input_value() == "2"
        assert other.page.get_by_label(texts["careful"]).input_value() == "0.6"
        assert "beside 0, 2; 8 tokens" in other.page.locator("summary").text_content()
        assert window.logged == other.logged == []
        other.close()
        window.close()
