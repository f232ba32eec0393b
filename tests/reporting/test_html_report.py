"""The report: what stands in it, that it is sound HTML and whole, and what it must survive."""

import dataclasses
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib
import pytest
from click.testing import CliRunner
from playwright.sync_api import sync_playwright

from mav import cli
from mav.cache_schema.errors import UsageError
from mav.pipeline.evaluation.evaluate import Evaluation, evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.reporting import html, training_log
from mav.pipeline.reporting.html import render, write_report
from mav.pipeline.reporting.plots import Chart, Point, Series, plots
from mav.pipeline.reporting.training_log import read_log
from mav.pipeline.runtime.known_places import shown_place
from tests.support.html_page import Page, assert_stands_alone
from tests.support.models.tiny import make_cache
from tests.support.running.browser import CHROMIUM, NARROW, WIDE, launch, scrolling_tables
from tests.support.steering.heads import save_random_head

ALPHAS = (0.0, 0.5, 2.0, -1.0)

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
LOG = [
    {"step": 10, "loss": 0.7, "rewards/accuracies": 0.5, "learning_rate": 1e-4, "epoch": 0.5},
    {"step": 20, "loss": 0.6, "rewards/accuracies": 0.625, "learning_rate": 5e-5, "epoch": 1.0},
    {"step": 20, "eval_loss": 0.65, "eval_rewards/margins": 0.0123, "epoch": 1.0},
]


def write_log(run: Path, *more: str) -> None:
    lines = [json.dumps(entry) + "\n" for entry in LOG]
    (run / "metrics.jsonl").write_text("".join(lines) + "".join(more), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """Nothing here draws the same twice, which takes a second each, but where that is tested."""
    drawn: dict[str, str] = {}

    def draw(charts: Sequence[Chart], name: str) -> str:
        key = repr((charts, name))
        if key not in drawn:
            drawn[key] = plots(charts, name)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "plots", draw)
        patch.setattr(training_log, "plots", draw)
        yield


@pytest.fixture(scope="module")
def found(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation of a head in a run's folder that has a log."""
    run = tmp_path_factory.mktemp("run")
    write_log(run)
    head = save_random_head(tiny_cache, run / "best")
    return evaluate(EvaluateOptions(head=head, cache=tiny_cache, alphas=ALPHAS, device="cpu"))


def moved(found: Evaluation, cache: Path, head: Path) -> Evaluation:
    """The same figures, of a head elsewhere."""
    return dataclasses.replace(found, head=save_random_head(cache, head))


def without_time(text: str) -> str:
    return re.sub(r"<time.*?</time>", "", text)


def test_the_figures_of_each_alpha_are_there(found: Evaluation) -> None:
    page = assert_stands_alone(render(found, NOW))
    rows = {row[0]: row for row in page.tables[0][1:]}
    assert list(rows) == ["0", "0.5", "2", "-1"]
    assert rows["0"][1] == "-"
    for result in found.results:
        _, reward, logp, margin, kl, norm = rows[f"{result.alpha:g}"]
        if result.reward_accuracy is not None and result.reward_accuracy_interval is not None:
            low, high = (100 * bound for bound in result.reward_accuracy_interval)
            assert reward == f"{100 * result.reward_accuracy:.1f} % [{low:.1f}, {high:.1f}]"
        assert logp.startswith(f"{100 * result.logp_accuracy:.1f} % [")
        assert margin.startswith(f"{result.margin:.3f} [")
        assert kl.startswith(f"{result.kl_per_token:.4f} [")
        assert norm == f"{result.vector_norm:.3f}"


def test_the_figures_by_length_are_there(found: Evaluation) -> None:
    page = Page(render(found, NOW))
    assert "By length, at alpha 0.5" in page.text
    bins, groups = page.tables[1][1:], page.tables[2][1:]
    assert [int(row[1]) for row in bins] == [each.pairs for each in found.by_length]
    assert [row[2].split(" %")[0] for row in bins] == [
        f"{100 * each.accuracy:.1f}" for each in found.by_length
    ]
    assert [row[0].split()[0] for row in bins] == [str(b.fewest_tokens) for b in found.by_length]
    assert [(row[0], int(row[1])) for row in groups] == [
        ("same length" if each.longer == "neither" else f"{each.longer} longer", each.pairs)
        for each in found.by_longer
    ]


def test_the_training_log_is_there(found: Evaluation) -> None:
    page = Page(render(found, NOW))
    head, *rows = page.tables[3]
    assert head[:3] == ["step", "Loss, training", "Loss, held-out"]
    assert [row[:3] for row in rows] == [["10", "0.7", "-"], ["20", "0.6", "0.65"]]
    # Four by alpha, two by length, four of training, each with a name for those who cannot see it.
    assert page.count("svg") == page.count("title") - 1 == 10


def test_what_was_evaluated_is_there(found: Evaluation) -> None:
    page = Page(render(found, NOW))
    told = {row[0]: row[1] for row in page.tables[-1]}
    assert told["head"] == shown_place(found.head)
    assert told["cache evaluated"] == Path(found.cache).name
    assert told["objective"] == "dpo, beta 0.1"
    assert told["pairs used"] == f"8 (held out from training), {found.tokens} response tokens"
    assert re.search(r"fingerprint [0-9a-f]{16}$", told["its data"])
    assert "torch 2." in told["software"]
    assert "2026-01-02 03:04 UTC" in page.text


@pytest.mark.parametrize("log", [None, "", '{"step": 1', '{"step": 3}\n'])
def test_a_head_without_a_log_has_no_curves(
    found: Evaluation, tiny_cache: Path, tmp_path: Path, log: str | None
) -> None:
    if log is not None:
        (tmp_path / "metrics.jsonl").write_text(log)
    page = assert_stands_alone(render(moved(found, tiny_cache, tmp_path / "best"), NOW))
    if log != '{"step": 3}\n':
        assert "No training curves: there is no metrics.jsonl" in page.text
    assert page.count("svg") == 6


@pytest.mark.parametrize(
    "rest",
    [
        '{"step": 30, "loss": 0.',
        '{"step": 30, "loss"',
        "\0\0\0\0",
        "[1]\n",
        "7\n",
        '{"loss": 1}\n',
        '{"step": Infinity}\n',
        '{"step": 30, "loss": "low"}\n',
        '{"step": 30, "loss": null}\n',
        '{"step": 30, "loss": 1' + "0" * 400 + "}\n",
    ],
)
def test_a_line_that_is_no_metrics_is_skipped_and_told(
    found: Evaluation, tiny_cache: Path, tmp_path: Path, rest: str
) -> None:
    write_log(tmp_path, rest)
    page = assert_stands_alone(render(moved(found, tiny_cache, tmp_path / "last"), NOW))
    assert "1 of its lines could not be read" in page.text
    assert [row[0] for row in page.tables[3][1:]] == ["10", "20"]


def test_a_line_that_is_no_text_is_skipped(tmp_path: Path) -> None:
    write_log(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 30, "lo\xff\xfe')
    log = read_log(tmp_path / "best")
    assert log is not None
    assert (list(log.values), log.unreadable) == ([10, 20], 1)


def test_a_run_that_diverged(found: Evaluation, tiny_cache: Path, tmp_path: Path) -> None:
    write_log(tmp_path, '{"step": 30, "loss": NaN, "rewards/margins": Infinity}\n')
    page = assert_stands_alone(render(moved(found, tiny_cache, tmp_path / "best"), NOW))
    assert page.tables[3][-1][:2] == ["30", "nan"]


def test_the_log_is_found_from_inside_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path)
    (tmp_path / "best").mkdir()
    monkeypatch.chdir(tmp_path / "best")
    log = read_log(Path())
    assert log is not None
    assert log.path == tmp_path / "metrics.jsonl"


def test_a_long_log_is_thinned(found: Evaluation, tiny_cache: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 1004)]
    lines.append('{"step": 500, "eval_loss": 0.1}\n')
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    text = render(moved(found, tiny_cache, tmp_path / "best"), NOW)
    rows = Page(text).tables[3][1:]
    assert len(rows) <= 202
    assert (rows[0][0], rows[1][0], rows[-1][0]) == ("1", "7", "1,003")
    assert ["500", "0.002", "0.1"] in [row[:3] for row in rows]
    assert "Training log, one in 6 of its lines" in text


HOSTILE = '<script>alert("a&b")<&#39;\'é"'


def test_names_are_escaped(found: Evaluation, tiny_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / (HOSTILE.replace("/", "") + "--><!--")
    run.mkdir()
    write_log(run)
    head = save_random_head(tiny_cache, run / "best", id=HOSTILE + "</td>")
    text = render(dataclasses.replace(found, head=head), NOW)
    page = assert_stands_alone(text)
    assert "<script" not in text
    assert "<!--" not in text
    told = {row[0]: "".join(row[1:]) for row in page.tables[-1]}
    assert (told["head"], told["base"]) == (shown_place(head), HOSTILE + "</td>")


def test_a_name_that_is_no_text(found: Evaluation, tiny_cache: Path, tmp_path: Path) -> None:
    head = tmp_path / os.fsdecode(b"run\xff") / "best"
    try:
        head.parent.mkdir()
    except OSError:
        pytest.skip("this file system takes only text for names")
    write_report(moved(found, tiny_cache, head), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "run\\udcff" in assert_stands_alone(text).text


def test_a_single_pair(tiny_cache: Path, tmp_path: Path) -> None:
    head = save_random_head(tiny_cache, tmp_path / "head")
    cache = make_cache(tmp_path / "one", pairs=1)
    page = assert_stands_alone(
        render(evaluate(EvaluateOptions(head=head, cache=cache, alphas=[1.0], device="cpu")), NOW)
    )
    assert "[" not in page.tables[0][1][3]
    assert [row[1] for row in page.tables[1][1:]] == ["1"]
    assert len(page.tables[2]) == 2


def test_alpha_zero_alone(found: Evaluation, tiny_cache: Path) -> None:
    nothing = evaluate(
        EvaluateOptions(head=found.head, cache=tiny_cache, alphas=[0.0], device="cpu")
    )
    page = assert_stands_alone(render(nothing, NOW))
    assert "there is no accuracy by length" in page.text
    assert page.count("svg") == 3 + 4


def test_two_reports_differ_in_the_date_alone(
    found: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "plots", plots)
    monkeypatch.setattr(training_log, "plots", plots)
    first = render(found, NOW)
    assert render(found, NOW) == first
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "axes.labelpad", 30)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    second = render(found, datetime(2027, 1, 1, tzinfo=UTC))
    assert second != first
    assert without_time(second) == without_time(first)
    # The settings of whoever calls are left as they were.
    assert matplotlib.rcParams["font.size"] == 30


def test_plots_take_their_colours_from_the_page() -> None:
    both = [Series(label=name, points=[Point(x=0, y=1, interval=(0, 2))]) for name in "ab"]
    drawn = plots([Chart(title="<&>", x_label="x", series=both, mark=0.5, is_share=True)], "a")
    assert "<title>&lt;&amp;&gt;</title>" in drawn
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn))
    assert colours == {"none", "currentColor", "var(--line)", "var(--first)", "var(--second)"}


# Writing


def test_a_report_is_written_whole_or_not_at_all(
    found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.html"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        write_report(found, path)
    assert path.read_text() == "old"
    write_report(found, path)
    assert_stands_alone(path.read_text(encoding="utf-8"))
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(found: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "a.html").symlink_to(tmp_path / "to" / "b.html")
    write_report(found, tmp_path / "a.html")
    assert (tmp_path / "a.html").is_symlink()
    assert (tmp_path / "to" / "b.html").stat().st_size > 10_000


def test_from_python_a_missing_folder_is_refused(found: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        write_report(found, tmp_path / "nowhere" / "a.html")


def test_the_command(found: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    args = ["--head", found.head, "--cache", found.cache, "--alphas", "0,1", "--device", "cpu"]
    words = ["evaluate", *args, "--json", "--report", str(path)]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    rows = assert_stands_alone(path.read_text(encoding="utf-8")).tables[1][1:]
    assert [int(row[1]) for row in rows] == [each["pairs"] for each in told["by_length"]]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_its_tables_can_be_read_on_a_phone(found: Evaluation, tmp_path: Path) -> None:
    write_report(found, tmp_path / "report.html")
    with sync_playwright() as started:
        browser = launch(started)
        for size in (NARROW, WIDE):
            page = browser.new_page(viewport=size)
            page.goto((tmp_path / "report.html").as_uri())
            page.locator("details").evaluate_all("all => all.map(one => one.open = true)")
            tables = {*scrolling_tables(page)}
            assert {"Figures by alpha", "Training log"} <= tables if size == NARROW else not tables
        browser.close()
