"""The page in headless Chromium: columns, colours, sliders, keyboard, errors, phones, the key."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.static_files import page_files
from tests.serving.screenshot import ask_and_shoot
from tests.support.running.browser import BROWSER, NARROW, Opened
from tests.support.running.limits import wait_until
from tests.support.running.server import http, running

pytestmark = BROWSER
FULL: Final = 3
"""Nats that have the full colour."""


@pytest.fixture
def opened(browser: Any, server: HttpServer) -> Iterator[Opened]:
    window = Opened(browser, server.url).begun()
    yield window
    window.close()


def test_three_strengths_side_by_side_with_what_the_head_changed(
    opened: Opened, server: HttpServer
) -> None:
    page = opened.page
    page.get_by_label("Alpha, number").fill("3")
    page.get_by_label("Beside").fill("0, -2")
    opened.ask()
    assert opened.titles() == ["\N{MINUS SIGN}2", "0, the base", "3"]
    boxes = [page.locator(".answer").nth(number).bounding_box() for number in range(3)]
    assert len({box["y"] for box in boxes}) == 1, "the columns are not side by side"
    assert len({box["x"] for box in boxes}) == 3
    base, strong = page.locator(".answer").nth(1), page.locator(".answer").nth(2)
    assert "own" in (strong.get_attribute("class") or "").split()
    assert base.locator(".token").count() > 0
    assert base.locator(".raised, .lowered, .change").count() == 0
    assert strong.locator(".raised, .lowered").count() > 0
    assert "with the head" in strong.locator(".raised, .lowered").first.get_attribute("title")
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


def test_colours_are_those_of_the_scale(opened: Opened) -> None:
    page, legend = opened.page, opened.page.locator("#legend")
    assert legend.is_hidden()
    page.get_by_label("Beside").fill("-40, 40")
    opened.ask()
    assert legend.is_visible()
    assert legend.locator("span").all_text_contents() == [
        f"\N{MINUS SIGN}{FULL} or less",
        "\N{MINUS SIGN}1.5",
        "0",
        "+1.5",
        f"+{FULL} or more",
    ]
    assert "nats" in legend.text_content()
    bar = legend.locator(".bar").bounding_box()
    marks = [legend.locator("span").nth(number).bounding_box() for number in range(5)]
    middles = [mark["x"] + mark["width"] / 2 for mark in marks]
    assert middles == pytest.approx([bar["x"] + bar["width"] * n / 4 for n in range(5)], abs=1)
    tokens = page.locator(".raised, .lowered").evaluate_all(
        "all => all.map(one => [one.className, Number(one.dataset.change),"
        " parseInt(one.style.getPropertyValue('--share'))])"
    )
    assert len(tokens) > 10
    for names, change, share in tokens:
        assert ("raised" in names) == (change > 0)
        assert share == pytest.approx(100 * min(1, abs(change) / FULL), abs=0.6)
    assert {share for _, _, share in tokens} > {100}


def test_what_the_head_hardly_moved_is_said(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("Alpha, number").fill("0.001")
    page.get_by_label("Beside").fill("0, 40")
    opened.ask()
    base, weak, strong = (page.locator(".answer").nth(number) for number in range(3))
    assert (
        "Try an \N{GREEK SMALL LETTER ALPHA} further from 0"
        in weak.locator(".hardly").text_content()
    )
    assert "0.3 nats" in weak.locator(".hardly").text_content()
    assert base.locator(".hardly").count() == strong.locator(".hardly").count() == 0
    changes = strong.locator("[data-change]").evaluate_all(
        "all => all.map(one => Number(one.dataset.change))"
    )
    most = float(max(changes, key=abs))
    told = strong.locator(".change").text_content().split()
    assert told[:2] == ["largest", "change"]
    assert float(told[2].replace("\N{MINUS SIGN}", "-")) == pytest.approx(most, abs=0.006)
    mean = math.fsum(map(abs, changes)) / len(changes)
    assert float(told[4]) == pytest.approx(mean, abs=0.006)


def test_slider_and_number_are_one(opened: Opened) -> None:
    page = opened.page
    slider, number = page.get_by_label("Alpha, slider"), page.get_by_label("Alpha, number")
    assert number.input_value() == "1"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert number.input_value() == "1.05"
    number.fill("-1.5")
    assert slider.input_value() == "-1.5"


def ticks(page: Any) -> dict[str, float]:
    """The numbers under the slider, and where they are."""
    found: dict[str, float] = dict(
        page.locator(".ticks span").evaluate_all(
            "all => all.map(one => [one.textContent.replace('\N{MINUS SIGN}', '-'),"
            " one.getBoundingClientRect().left + one.getBoundingClientRect().width / 2])"
        )
    )
    return found


def test_ticks_stand_where_the_slider_has_their_numbers(opened: Opened) -> None:
    page = opened.page
    slider, number = page.get_by_label("Alpha, slider"), page.get_by_label("Alpha, number")
    assert [*ticks(page)] == ["-2", "-1", "0", "1", "2", "3", "4"]
    for text, x in ticks(page).items():
        box = slider.bounding_box()
        page.mouse.click(x, box["y"] + box["height"] / 2)
        assert float(number.input_value()) == float(text)
    for value, low, high in (("10", "-2", "10"), ("-7.5", "-8", "4"), ("100", "-20", "100")):
        number.fill(value)
        assert slider.input_value() == value
        assert [*ticks(page)][:: len(ticks(page)) - 1] == [low, high]
    number.fill("1")
    assert [*ticks(page)] == ["-2", "-1", "0", "1", "2", "3", "4"]
    assert "\N{MINUS SIGN}100 to 100; the server's own: 1" in page.locator("#range").text_content()


def test_a_server_whose_own_alpha_is_beyond_the_slider(
    browser: Any, head: str, bases: tuple[str, str]
) -> None:
    with running(head=head, bases=bases[:1], alpha=8.85) as server:
        window = Opened(browser, server.url).begun()
        assert window.page.get_by_label("Alpha, slider").input_value() == "8.85"
        assert [*ticks(window.page)][-1] == "10"
        window.ask()
        assert window.titles() == ["0, the base", "2", "8.85"]
        assert window.alert() == ""
        window.close()


def test_everything_can_be_done_with_the_keyboard(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("Tokens").fill("12")
    page.get_by_label("Prompt").focus()
    page.keyboard.type("Hi there")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".answer")
    opened.done()
    page.get_by_label("Alpha, number").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "text"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.at").count() == 1
    assert "base" in page.locator("#detail").text_content()
    page.keyboard.press("Tab")
    assert page.locator(".token.at").count() == 0
    assert page.evaluate("document.activeElement.textContent") == "Copy"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Continue from this answer"
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


def red(window: Opened) -> list[str]:
    """What is shown in the colour of errors."""
    found: list[str] = window.page.evaluate(
        """() => {
        const probe = document.createElement("p");
        probe.style.color = "var(--wrong)";
        document.body.append(probe);
        const wrong = getComputedStyle(probe).color;
        probe.remove();
        return [...document.querySelectorAll("body *")]
          .filter((one) => one.checkVisibility())
          .filter((one) => [getComputedStyle(one).color, getComputedStyle(one).borderTopColor]
            .includes(wrong))
          .map((one) => one.id || one.className || one.tagName);
        }"""
    )
    return found


def test_nothing_is_red_or_bold_before_anything_was_done(opened: Opened) -> None:
    assert red(opened) == []
    assert opened.alert() == ""
    weights = opened.page.locator("input, select, textarea").evaluate_all(
        "all => all.map(one => getComputedStyle(one).fontWeight)"
    )
    assert set(weights) == {"400"}
    opened.press_ask()
    assert opened.alert() == "Prompt: got nothing, expected something to answer"
    assert {"error", "prompt"} <= set(red(opened))
    opened.ask()
    assert red(opened) == []


def test_a_server_that_is_gone_is_told_without_red(browser: Any, server: HttpServer) -> None:
    window = Opened(browser, server.url).begun()
    window.page.route("**/v1/models", lambda route: route.abort())
    window.page.reload()
    notice = window.page.locator("#notice")
    notice.wait_for()
    assert "does not answer" in notice.text_content()
    assert red(window) == []
    window.page.unroute("**/v1/models")
    window.page.get_by_label("Prompt").fill("Hi")
    window.press_ask()
    window.page.wait_for_selector(".answer")
    window.done()
    assert notice.is_hidden()
    assert window.page.locator("#base option").all_text_contents() == ["first", "second"]
    assert [body["model"] for body in window.bodies(3)] == ["first"] * 3
    assert all(window.texts())
    window.close()


def test_errors_are_shown_as_text(opened: Opened) -> None:
    page = opened.page
    for name, value, expected in (
        ("Beside", "0, strong", "strong"),
        ("Beside", "1, 2, 3, 4, 5, 6, 7", "at most 6"),
        ("Tokens", "0", "from 1 to 1024"),
        ("Temperature", "2.5", "from 0 to 2"),
        ("Seed", "0.5", "a whole number"),
    ):
        field = page.get_by_label(name, exact=True)
        before = field.input_value()
        field.fill(value)
        page.get_by_label("Prompt").fill("Hi")
        opened.press_ask()
        assert expected in opened.alert()
        assert field.get_attribute("aria-invalid") == "true"
        field.fill(before)
    assert opened.asked == []
    page.get_by_label("Beside").fill("0")
    opened.ask("<img src=x onerror=alert(1)> " + "word " * 3000)
    assert opened.alert() == ""
    failed = page.locator(".answer .failed")
    assert failed.count() == 2
    assert "tokens" in failed.first.text_content()
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(browser: Any, server: HttpServer, scheme: str) -> None:
    window = Opened(browser, server.url, viewport=NARROW, color_scheme=scheme).begun()
    page = window.page
    assert not page.get_by_label("Tokens").is_visible()
    assert "beside 0, 2; 96 tokens" in page.locator("summary").text_content()
    window.ask("a" * 80, tokens=40)
    assert window.width() == NARROW["width"]
    assert 0 <= page.locator("#strength").bounding_box()["y"] < 20, "the answers are out of sight"
    text, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (luminance(text) > luminance(ground)) == (scheme == "dark")
    assert contrast(text, ground) > 7
    page.locator(".answer").last.locator(".token").last.scroll_into_view_if_needed()
    slider = page.get_by_label("Alpha, slider").bounding_box()
    assert 0 <= slider["y"] < NARROW["height"] / 3, "the slider is out of sight"
    detail = page.locator("#detail")
    page.locator("#legend").evaluate("one => one.scrollIntoView()")
    page.locator(".answer").first.locator(".token").first.click()
    assert "%" in detail.text_content()
    box = detail.bounding_box()
    assert box["y"] + box["height"] <= NARROW["height"], "what the token is, is out of sight"
    detail.evaluate("one => { one.textContent = 'a token '.repeat(50); }")
    assert detail.bounding_box()["height"] == box["height"], "tokens move under the pointer"
    heights = page.locator("button:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert min(heights) >= 34
    page.get_by_role("button", name="Continue from").last.click()
    assert window.width() == NARROW["width"]
    window.close()


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
        window = Opened(browser, server.url)
        page, key = window.page, window.page.get_by_label("This server asks for its API key")
        key.wait_for()
        assert red(window) == []
        key.fill("simsalabim")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#error:not([hidden])")
        assert window.alert() == "The server does not accept this key."
        key.fill("sesame")
        page.get_by_role("button", name="Use it").click()
        window.begun().ask()
        assert all(window.texts())
        assert page.locator("#key-form").is_hidden()
        assert window.alert() == ""
        page.get_by_role("button", name="Copy link").click()
        assert "sesame" not in page.url + page.content()
        window.close()


def test_what_the_page_may_do_is_little(server: HttpServer) -> None:
    paths = [file.path for file in page_files()]
    assert {"/", "/page.js", "/page.css", "/answers.css", "/icon.svg"} <= {*paths}
    with http(server) as web:
        for path in paths:
            response = web.get(path)
            assert response.status_code == 200
            assert "script-src 'self';" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")
            assert "innerHTML" not in response.text


def test_a_picture_of_it(opened: Opened, tmp_path: Path) -> None:
    target = tmp_path / "page.png"
    ask_and_shoot(opened.page, target, "How do I mend a kite?", "0, 2", 40)
    assert 10_000 < target.stat().st_size < 300_000
