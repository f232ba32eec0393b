"""`mav evaluate --report` and `--plot`: what they write, and what is refused before evaluating."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mav import cli
from mav.pipeline.evaluation.evaluate import Evaluation


def mav(*args: object) -> Result:
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(*_: Any, **__: Any) -> Evaluation:
        pytest.fail("the evaluation was begun")

    monkeypatch.setattr("mav.pipeline.evaluation.evaluate.evaluate", evaluated)


def refused(*args: object) -> str:
    """Run the command with options that it must refuse at once; return the message."""
    result = mav("evaluate", "--head", "h", "--cache", "c", *args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize("option", ["--report", "--plot"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere/a.svg", "No such file or directory. Name a file for {option} in a folder"),
        ("file/a.svg", "Not a directory. Name a file for {option} in a folder"),
        ("folder.svg", "not a file. Name a file for {option}."),
        ("pipe.svg", "not a file. Name a file for {option}."),
        ("a" * 300 + ".svg", "File name too long. Name a file for {option}"),
    ],
)
@pytest.mark.usefixtures("no_evaluation")
def test_a_place_that_takes_no_file_is_refused_at_once(
    tmp_path: Path, option: str, name: str, told: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.svg").mkdir()
    os.mkfifo(tmp_path / "pipe.svg")
    before = sorted(tmp_path.rglob("*"))
    message = refused(option, tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: {told.format(option=option)}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_evaluation")
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", denied)
    path = tmp_path / "a.html"
    assert refused("--report", path).startswith(f"{path}: Permission denied. Name a file for")


@pytest.mark.usefixtures("no_evaluation")
def test_a_plot_of_no_picture_format_is_refused_at_once(tmp_path: Path) -> None:
    assert refused("--plot", tmp_path / "a.docx").startswith(f"--plot: got {tmp_path / 'a.docx'}, ")


@pytest.mark.parametrize("option", ["--report", "--plot"])
@pytest.mark.usefixtures("no_evaluation")
def test_without_matplotlib_it_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    told = f"{option} needs matplotlib: pip install matplotlib"
    assert refused(option, tmp_path / "a.svg") == told
    assert list(tmp_path.iterdir()) == []
