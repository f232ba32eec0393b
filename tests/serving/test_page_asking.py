"""The page asks anew when strengths and settings change: what, when, and what it ends for it."""

from collections.abc import Iterator
from typing import Any

import pytest

from mav.pipeline.serving.http_server import HttpServer
from tests.support.running.browser import BROWSER, PAUSE, Opened
from tests.support.running.gate import Gate
from tests.support.running.limits import wait_until
from tests.support.running.server import CHAT, http

pytestmark = BROWSER


@pytest.fixture
def opened(browser: Any, server: HttpServer) -> Iterator[Opened]:
    window = Opened(browser, server.url, frozen=True).begun()
    yield window
    window.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, server: HttpServer) -> Iterator[Gate]:
    closed = Gate(monkeypatch, server.worker)
    yield closed
    closed.open.set()


def marked(window: Opened) -> list[bool]:
    """Whether each column is one of those that `mark` found."""
    found: list[bool] = window.page.locator(".answer").evaluate_all(
        "all => all.map(one => one.dataset.seen === 'yes')"
    )
    return found


def mark(window: Opened) -> None:
    window.page.locator(".answer").evaluate_all("all => all.map(one => one.dataset.seen = 'yes')")


def test_the_slider_asks_for_its_column_alone_when_it_rests(
    opened: Opened, server: HttpServer
) -> None:
    page = opened.page
    opened.ask()
    mark(opened)
    page.get_by_label("Alpha, slider").focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    opened.pass_time(PAUSE - 1)
    opened.bodies(3)
    page.keyboard.press("ArrowRight")
    opened.pass_time(PAUSE - 1)
    opened.bodies(3)
    opened.pass_time(1)
    opened.done()
    body = opened.bodies(4)[-1]
    assert body["alpha"] == 3.05
    assert opened.titles() == ["0, the base", "2", "3.05"]
    assert marked(opened) == [True, True, False]
    with http(server) as web:
        answer = web.post(CHAT, json={**body, "stream": False}).json()
    assert opened.texts()[2] == answer["choices"][0]["message"]["content"]
    # Back where it was, nothing is left of the first answer: it is asked for again.
    page.get_by_label("Alpha, number").fill("2")
    opened.pass_time()
    opened.done()
    assert opened.titles() == ["0, the base", "2"]
    assert marked(opened) == [True, True]
    assert page.locator(".answer.own h2").all_text_contents() == [
        "\N{GREEK SMALL LETTER ALPHA} = 2 the slider's"
    ]
    opened.bodies(4)
    assert opened.logged == []


def test_nothing_is_asked_before_the_first_question(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("Prompt").fill("Hi")
    page.get_by_label("Alpha, number").fill("2.5")
    page.get_by_label("Tokens").fill("7")
    page.get_by_label("Beside").fill("strong")
    page.get_by_label("Prompt").focus()
    opened.pass_time(100 * PAUSE)
    assert opened.bodies(0) == []
    assert opened.alert() == ""


def test_a_stream_that_nobody_wants_any_more_is_ended(
    opened: Opened, server: HttpServer, gate: Gate
) -> None:
    page = opened.page

    def decoded() -> set[str]:
        decoder = server.worker._decoder
        return {str(row.request.alpha) for row in decoder.sequences} if decoder else set()

    page.get_by_label("Prompt").fill("Hi")
    page.get_by_label("Tokens").fill("200")
    opened.press_ask()
    wait_until(lambda: decoded() == {"0", "1", "2"})
    page.get_by_label("Alpha, number").fill("3")
    opened.pass_time()
    wait_until(lambda: decoded() == {"0", "2", "3"})
    gate.open.set()
    opened.done()
    assert opened.titles() == ["0, the base", "2", "3"]
    assert "stopped" not in " ".join(page.locator(".rate").all_text_contents())
    assert all(opened.texts())
    opened.bodies(4)


@pytest.mark.parametrize(
    ("name", "value", "field", "sent"),
    [
        ("Tokens", "5", "max_tokens", 5),
        ("Temperature", "0.7", "temperature", 0.7),
        ("Seed", "-3", "seed", -3),
    ],
)
def test_settings_are_asked_for_again_in_every_column(
    opened: Opened, name: str, value: str, field: str, sent: float
) -> None:
    opened.ask()
    opened.page.get_by_label(name, exact=True).fill(value)
    opened.pass_time()
    opened.done()
    bodies = opened.bodies(6)
    assert [body[field] for body in bodies[3:]] == [sent] * 3
    assert [body["alpha"] for body in bodies[3:]] == [0, 1, 2]
    opened.page.get_by_label(name, exact=True).press("Tab")
    opened.pass_time()
    opened.bodies(6)


def test_strengths_beside_come_and_go_and_the_others_stay(opened: Opened) -> None:
    opened.ask()
    mark(opened)
    opened.page.get_by_label("Beside").fill("2, \N{MINUS SIGN}1")
    opened.pass_time()
    opened.done()
    assert opened.titles() == ["\N{MINUS SIGN}1", "1", "2"]
    assert marked(opened) == [False, True, True]
    assert opened.bodies(4)[-1]["alpha"] == -1


def test_another_prompt_or_base_waits_for_the_button(opened: Opened) -> None:
    page, edited = opened.page, opened.page.locator("#edited")
    opened.ask("How do I mend a kite?")
    assert edited.is_hidden()
    page.get_by_label("Prompt").fill("How do I fly one?")
    page.locator("#base").select_option("second")
    opened.pass_time(10 * PAUSE)
    opened.bodies(3)
    assert edited.text_content() == (
        "The answers below are of first to “How do I mend a kite?”. Ask sends what stands here now."
    )
    page.get_by_label("Alpha, number").fill("3")
    opened.pass_time()
    opened.done()
    body = opened.bodies(4)[-1]
    assert body["messages"] == [{"role": "user", "content": "How do I mend a kite?"}]
    assert body["model"] == "first"
    page.locator("#base").select_option("first")
    opened.press_ask()
    opened.done()
    assert edited.is_hidden()
    assert {body["messages"][0]["content"] for body in opened.bodies(7)[4:]} == {
        "How do I fly one?"
    }


def test_a_number_that_is_being_typed_is_no_error_yet(opened: Opened) -> None:
    page = opened.page
    opened.ask()
    texts = opened.texts()
    number = page.get_by_label("Alpha, number")
    number.fill("")
    opened.pass_time()
    assert opened.alert() == ""
    number.press("Tab")
    opened.pass_time()
    assert opened.alert() == "Alpha: got no number, expected \N{MINUS SIGN}100 to 100"
    number.fill("250")
    number.press("Tab")
    opened.pass_time()
    assert opened.alert() == "Alpha: got 250, expected \N{MINUS SIGN}100 to 100"
    assert opened.texts() == texts
    number.fill("1")
    opened.pass_time()
    assert opened.alert() == ""
    opened.bodies(3)


def test_stop_ends_the_answers_and_they_stay(
    opened: Opened, server: HttpServer, gate: Gate
) -> None:
    page = opened.page
    stop = page.get_by_role("button", name="Stop")
    assert stop.is_disabled()
    page.get_by_label("Prompt").fill("Hi")
    page.get_by_label("Tokens").fill("200")
    opened.press_ask()
    wait_until(lambda: server.worker.rows == 3)
    page.get_by_label("Alpha, number").fill("3")
    stop.click()
    opened.done()
    wait_until(lambda: not server.worker.rows)
    assert all("stopped" in rate for rate in page.locator(".rate").all_text_contents())
    opened.pass_time(10 * PAUSE)
    opened.bodies(3)
    gate.open.set()
    page.get_by_label("Alpha, number").fill("4")
    opened.pass_time()
    opened.done()
    rates = page.locator(".rate").all_text_contents()
    assert ["stopped" in rate for rate in rates] == [True, True, False]
    opened.bodies(4)


def test_what_failed_is_asked_for_again_with_the_next_change(opened: Opened) -> None:
    page = opened.page
    refusal = {"error": {"message": "Too many requests wait.", "code": "overloaded"}}
    page.route(f"**{CHAT}", lambda route: route.fulfill(status=429, json=refusal))
    opened.ask()
    failed = page.locator(".failed")
    assert failed.all_text_contents() == ["Too many requests wait."] * 3
    page.unroute(f"**{CHAT}")
    page.get_by_label("Alpha, number").fill("3")
    opened.pass_time()
    opened.done()
    assert failed.count() == 0
    assert all(opened.texts())
    opened.bodies(6)
