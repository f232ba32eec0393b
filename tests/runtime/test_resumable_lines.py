"""Lines of an interrupted run."""

import os
from pathlib import Path

import pytest

from mav.cache_schema.errors import DataError
from mav.pipeline.runtime.resumable_lines import resumable_lines


def test_what_an_interruption_leaves_in_the_file_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with resumable_lines(path, {"by": 1}, lambda line: int(line["n"])) as kept:
        kept.append([{"n": 0}])
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept.append([{"n": 1}, {"n": 2}])
        assert len(kept.lines) == 3
    monkeypatch.undo()
    with resumable_lines(path, {"by": 1}, lambda line: int(line["n"])) as kept:
        assert [*kept.lines] == [0, 1, 2]


def test_other_settings_say_both_ways_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with resumable_lines(path, {"by": 1}, str):
        pass
    with (
        pytest.raises(DataError, match=r"by: 1, now 2\). Remove it .*, or name another `output`"),
        resumable_lines(path, {"by": 2}, str),
    ):
        pass
