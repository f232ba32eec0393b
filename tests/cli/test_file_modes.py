"""Everything a user gets has the mode that the umask gives, whatever wrote it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.models.tiny import save_base, tiny_base, write_rows
from tests.support.running.commands import Line, done


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_base(), tmp_path_factory.mktemp("base") / "base")


# A mode that is fixed anywhere is wrong under one of the first two.
@pytest.mark.parametrize(
    "mask", [0o027, 0o002, *(pytest.param(mask, marks=pytest.mark.slow) for mask in (0o022, 0o077))]
)
def test_files_and_folders_follow_the_umask(mask: int, base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", 16)
    out = tmp_path / "out"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello?\nAnd then?\n")
    line = Line(base=base, data=data, cache=out / "cache", run=out / "runs" / "head")
    evaluate = ["evaluate", "--head", line.run, "--cache", line.cache, "--alphas", "1"]
    with umask(mask):
        done(*line.extract, "--compression", "zstd")
        done(*line.train)
        done(*evaluate, "--plot", out / "plot.png", "--report", out / "report.html")
        named = ["--base-model", base, "--prompts", prompts, "--output", out / "answers.jsonl"]
        done(*line.generate, *named, "--alpha", 1)
    found = list(out.rglob("*"))
    names = {path.name for path in found}
    wanted = {"model.safetensors", "config.json", "optimizer.safetensors", "state.json"}
    wanted |= {"metrics.jsonl", "plot.png", "report.html", "answers.jsonl", "c.0"}
    assert wanted <= names
    assert any(name.startswith("events.out") for name in names)
    wrong = {
        str(path.relative_to(out)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in found
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~mask
    }
    assert not wrong
