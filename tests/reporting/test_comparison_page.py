"""The page of a comparison: what stands in it, that it is whole, and that its filters work."""

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import sync_playwright

from mav.pipeline.comparison.intervals import Estimate
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.comparison.run import Comparison
from mav.pipeline.comparison.summary import Summary, summarize_systems
from mav.pipeline.comparison.systems import Measured, System, keys_of
from mav.pipeline.reporting.comparison_page import render_comparison, write_comparison
from mav.pipeline.reporting.comparison_table import comparison_table
from mav.pipeline.reporting.curves import Curve, CurvePoint, draw_curves
from tests.support.running.browser import CHROMIUM, launch, scrolling_tables
from tests.support.running.limits import EVENT
from tests.support.steering.comparisons import prompts_of

NOW: Final = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
NASTY: Final = "</script><script>alert(1)</script> <b>&amp; \ud800"
_VOID: Final = {"meta", "input"}


def system(name: str, kl: float | None, *responses: str, **more: Any) -> System:
    answers = {
        AnswerKey(number): Answer(key=AnswerKey(number), response=text, new_tokens=3, kl=kl)
        for number, text in enumerate(responses)
    }
    rewards: dict[str, Measured] = {
        "rm": {key: float(len(answer.response)) for key, answer in answers.items()}
    }
    return System(name=name, answers=answers, rewards=rewards, **more)


def comparison(*systems: System) -> Comparison:
    prompts = prompts_of("Name a tree.", "Is rain wet?", f"Why {NASTY}?")
    expected = keys_of(prompts, systems)
    summary = Summary(
        source="prompts.txt",
        prompts=3,
        dropped={"repeated_prompt": 2},
        samples=1,
        reference=systems[0].name,
        decoding={"temperature": 1.0, "max_new_tokens": 9},
        base="tiny",
        judge=None,
        systems=summarize_systems(prompts, systems, systems[0].name, expected, ("no",)),
    )
    return Comparison(prompts=prompts, systems=systems, summary=summary)


FOUND: Final = comparison(
    system("alpha=0", 0.0, "An elm.", "Yes.", "So.", alpha=0.0),
    *(
        dataclasses.replace(one, alpha=alpha, head="first")
        for alpha, one in (
            (1.0, system("alpha=1", 1.5, "An oak.", "Yes.", NASTY)),
            (2.0, system("alpha=2", 4.0, "Oak oak oak", "Yes.", "So.")),
        )
    ),
    system("file", None, "A pine.", "Yes.", "So."),
)


class Elements(HTMLParser):
    """A page's elements, each of which is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_it_is_sound_and_loads_nothing() -> None:
    page = render_comparison(FOUND, NOW)
    tags = Elements(page).tags
    assert [tag for tag, _ in tags].count("script") == 1
    named = {name for _, attributes in tags for name in attributes}
    assert not named & {"src", "href", "srcset", "action", "onclick"}
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert page == render_comparison(FOUND, NOW)


def test_all_answers_are_there_each_with_its_figures() -> None:
    page = render_comparison(FOUND, NOW)
    cards = [one for tag, one in Elements(page).tags if one.get("class") == "answer"]
    assert [one["data-system"] for one in cards] == ["alpha=0", "alpha=1", "alpha=2", "file"] * 3
    assert "rm 7.00 · KL 1.50 · 3 tokens" in page
    assert "2 repeated_prompt" in page


def test_it_is_written_with_text_that_is_not_unicode(tmp_path: Path) -> None:
    write_comparison(FOUND, tmp_path / "page.html")
    assert "\\ud800" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_curve_joins_a_heads_strengths_from_the_base_on() -> None:
    page = render_comparison(FOUND, NOW)
    curves = re.findall(r'<polyline points="([^"]*)"', page)
    assert [len(curve.split()) for curve in curves] == [3, 3]
    for curve in curves:
        xs = [float(point.split(",")[0]) for point in curve.split()]
        assert xs == sorted(xs)
    assert "No curves" in render_comparison(comparison(system("a", None, "x", "y", "z")), NOW)


def test_the_table_says_what_was_left_out() -> None:
    told = comparison_table(FOUND.summary)
    assert "Rows of prompts.txt that are not prompts: 2 repeated_prompt" in told
    assert all(len(line) == len(line.rstrip()) for line in told.splitlines())


def at(value: float | None, spread: float = 0.0) -> Estimate:
    if value is None:
        return Estimate(None, None, None, 0)
    return Estimate(value, value - spread, value + spread, 5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_points_lie_where_their_values_are(scale: float) -> None:
    points = [
        CurvePoint(x=at(x * scale), y=at(y * scale, scale), label=f"{x}")
        for x, y in ((0, -3), (2, 1), (4, 5))
    ]
    drawn = draw_curves("it", "x", [Curve(name="c", points=points)])
    places = [
        tuple(map(float, found))
        for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x1
    assert y0 > y1
    assert all(56 <= x <= 446 and 30 <= y <= 256 for x, y in places)


def test_what_is_unknown_is_not_drawn() -> None:
    points = [
        CurvePoint(x=at(None), y=at(1.0), label="a"),
        CurvePoint(x=at(1.0), y=at(None), label="b"),
    ]
    assert draw_curves("it", "x", [Curve(name="c", points=points)]) == ""
    one = [CurvePoint(x=at(0.0), y=at(0.0), label="a")]
    assert draw_curves("it", "x", [Curve(name="c", points=one)]).count("<circle") == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        chromium = launch(started)
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_answers_are_filtered(browser: Any, tmp_path: Path) -> None:
    write_comparison(FOUND, tmp_path / "page.html")
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page, logged = context.new_page(), []
    page.set_default_timeout(1000 * EVENT)
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("dialog", lambda dialog: logged.append(dialog.message))
    page.goto((tmp_path / "page.html").as_uri())

    def shown() -> tuple[str, int]:
        return page.locator("output").inner_text(), page.locator("article:visible").count()

    assert scrolling_tables(page) == ["Reward, wins and distance", "Texts"]
    assert shown() == ("3 of 3 prompts", 3)
    page.get_by_label("only where they differ").check()
    assert shown() == ("2 of 3 prompts", 2)
    for name in ("alpha=1", "file"):
        page.get_by_label(name, exact=True).uncheck()
    assert page.locator(".answer:visible").count() == 2
    assert shown() == ("1 of 3 prompts", 1)
    page.get_by_label("only where they differ").uncheck()
    page.get_by_label("Search").fill("RAIN")
    assert shown() == ("1 of 3 prompts", 1)
    page.get_by_label("Search").fill("an oak")
    assert shown() == ("0 of 3 prompts", 0)
    page.get_by_label("alpha=1", exact=True).check()
    assert shown() == ("1 of 3 prompts", 1)
    assert logged == []
    context.close()
