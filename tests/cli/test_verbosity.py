"""What commands print of the log: --quiet, --verbose, and nothing of either afterwards."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mav.cache_schema.errors import UsageError
from mav.cli import main
from mav.cli_commands.shared.errors import command
from mav.pipeline.runtime.distributed import let_first_process_log
from mav.pipeline.runtime.progress import progress_bar

ROOT = Path(__file__).parents[2]
MAV = logging.getLogger("mav")
LOG = logging.getLogger("mav.room.module")


@command("  mav speak")
@click.option("--rank", default=0)
@click.option("--fail", is_flag=True)
def speak_command(*, rank: int, fail: bool) -> None:
    """Log at every level, with a progress bar open."""
    let_first_process_log(rank)
    with progress_bar(2, "Working", "pair") as bar:
        LOG.debug("a detail")
        LOG.info("a step, 100% done")
        LOG.warning("a warning")
        LOG.error("an error")
        bar.update(2)
    if fail:
        raise UsageError("refused")
    click.echo("the result")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = list(MAV.handlers), MAV.level, MAV.propagate
    yield
    assert (MAV.handlers, MAV.level, MAV.propagate) == before


def spoken(*args: str) -> Result:
    return CliRunner().invoke(speak_command, args)


def lines(result: Result) -> list[str]:
    """The lines of standard error that are not a progress bar's."""
    return [
        line
        for line in result.stderr.replace("\r", "\n").splitlines()
        if line.strip() and "Working" not in line
    ]


def test_by_default_steps_and_warnings_are_printed_as_they_are() -> None:
    result = spoken()
    assert lines(result) == ["a step, 100% done", "a warning", "an error"]
    assert "Working" in result.stderr
    assert result.stdout == "the result\n"


def test_quiet_leaves_warnings_and_errors_and_no_bar() -> None:
    result = spoken("--quiet")
    assert result.stderr == "a warning\nan error\n"
    assert result.stdout == "the result\n"


def test_verbose_adds_details_and_names() -> None:
    assert lines(spoken("--verbose")) == [
        "mav.room.module: a detail",
        "mav.room.module: a step, 100% done",
        "mav.room.module: a warning",
        "mav.room.module: an error",
    ]


@pytest.mark.parametrize("args", [("--quiet", "--verbose"), ("--verbose", "--quiet")])
def test_quiet_and_verbose_exclude_each_other(args: tuple[str, str]) -> None:
    result = spoken(*args)
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: give either --quiet or --verbose\n")


def test_each_command_prints_for_itself() -> None:
    assert lines(spoken("--verbose"))[0] == "mav.room.module: a detail"
    assert lines(spoken("--fail")) == [
        *("a step, 100% done", "a warning", "an error"),
        "Error: refused",
    ]
    assert lines(spoken()) == lines(spoken())


def test_of_several_processes_the_first_speaks() -> None:
    assert spoken("--rank", "1").stderr == "an error\n"
    assert spoken("--rank", "1", "--verbose").stderr == "mav.room.module: an error\n"


def test_what_listens_to_the_root_logger_does_not_print_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoken()
    assert caplog.records == []
    LOG.warning("now")
    assert caplog.messages == ["now"]


def test_a_training_run_tells_of_its_checkpoints_when_verbose(
    tiny_cache: Path, tmp_path: Path
) -> None:
    def trained(name: str, *args: str) -> str:
        where = ("--cache", str(tiny_cache), "--output-dir", str(tmp_path / name))
        rest = ("--expansion-size", "16", "--eval-fraction", "0", "--bf16", "off")
        options = (*where, *rest, "--report-to", "none", "--workers", "0", *args)
        result = CliRunner().invoke(main, ["train", *options])
        assert result.exit_code == 0, result.stderr
        return result.stderr

    assert trained("quiet", "--quiet") == ""
    assert "checkpoint written" not in (plain := trained("plain"))
    assert "\nHead mlp: pooled" in f"\n{plain}"
    told = trained("verbose", "--verbose")
    assert "mav.pipeline.training.train: Head mlp: pooled" in told
    assert "mav.pipeline.training.train: Step " in told and "checkpoint written to" in told


def test_python_shows_warnings_alone_and_progress_where_it_is_asked_for() -> None:
    code = """
import logging, sys
import mav
log = logging.getLogger("mav")
assert all(isinstance(handler, logging.NullHandler) for handler in log.handlers), log.handlers
assert log.level == logging.NOTSET
child = logging.getLogger("mav.pipeline.training.train")
child.info("unseen")
child.warning("seen")
logging.basicConfig(level=logging.INFO, format="%(message)s")
child.info("progress")
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "seen\nprogress\n")
