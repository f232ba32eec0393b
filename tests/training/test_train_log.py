"""The log of a training run outlives kills and power failures."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mav.pipeline.training.log import MetricsLog, read_lines


def write(folder: Path, steps: range) -> Path:
    log = MetricsLog(folder, 0)
    for step in steps:
        log.write(step, {"loss": 1 / step, "rewards/accuracies": 0.5})
    return log.path


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    assert MetricsLog(tmp_path, 0).path.read_text() == ""


def test_later_lines_are_taken_out_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 6))
    before = path.read_text().splitlines(keepends=True)
    MetricsLog(tmp_path, 3)
    assert path.read_text() == "".join(before[:3])
    MetricsLog(tmp_path, 3).write(4, {"loss": 2.0})
    assert steps_of(path) == [1, 2, 3, 4]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_log_that_is_gone_is_begun_anew(tmp_path: Path) -> None:
    MetricsLog(tmp_path, 3).write(4, {"loss": 2.0})
    assert steps_of(tmp_path / "metrics.jsonl") == [4]


DAMAGED = [
    b"\0" * 40 + b"}",
    b'\0\0\0\0{"step": 2, "loss": 0.5}',
    b'{"step": 2, "lo\0\0\0\0\0\0}',
    b'{"step": 2, "lo',
    b'{"loss": 1.0}',
    b'{"step": "two"}',
    b'{"step": 2, "loss": null}',
    b"[2]",
    b"{}",
    b"7",
    b"",
    b'{"step": 2, "lo\xff\xfe": 1}}',
]


@pytest.mark.parametrize("line", DAMAGED, ids=repr)
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_damaged_line_is_dropped(tmp_path: Path, line: bytes, number: int) -> None:
    path = write(tmp_path, range(1, 6))
    lines = path.read_bytes().splitlines()
    lines[number] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    found, unreadable = read_lines(path)
    rest = [step for step in range(1, 6) if step != number + 1]
    assert ([entry.step for entry in found], unreadable) == (rest, 1)
    assert found[0].values == {"loss": 1 / rest[0], "rewards/accuracies": 0.5}
    MetricsLog(tmp_path, 4).write(5, {"loss": 1.0})
    assert steps_of(path) == [step for step in rest if step <= 4] + [5]


def test_metrics_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": float("nan"), "rewards/margins": float("inf")})
    before = log.path.read_text()
    assert MetricsLog(tmp_path, 1).path.read_text() == before != ""


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_opening_a_log_never_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    path = write(tmp_path, range(1, 6))
    before = path.read_bytes()
    flushed: list[int] = []
    to_take_its_place: list[int] = []
    fsync = os.fsync

    def end(what: Any, *_: Any) -> None:
        if operation == "replace":
            to_take_its_place.append(Path(what).stat().st_ino)
        raise KeyboardInterrupt

    def note(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note)
        patch.setattr(os, operation, end)
        with pytest.raises(KeyboardInterrupt):
            MetricsLog(tmp_path, 3)
    assert path.read_bytes() == before
    if operation == "replace":  # what was to take its place had reached the disk
        assert flushed == to_take_its_place
    MetricsLog(tmp_path, 3)
    assert steps_of(path) == [1, 2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
