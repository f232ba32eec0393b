"""Writing a head: whatever a writer dies of, a whole head is there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch

from mav.cache_schema import HeadError, Manifest
from mav.pipeline.head.pretrained import load_head, save_head
from mav.pipeline.head.storage import CONFIG, WEIGHTS
from tests.support.faults.dying_disk import LOST, Disk, Killed, on, quick_disk
from tests.support.steering.heads import origin_of, same_weights, seeded_head


def fail_to_save(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)


def fail_to_serialize(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    """As safetensors itself tells of a full disk."""

    def full(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)


def fail_to_sync(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)


def interrupted(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)


@pytest.mark.parametrize("fail", [fail_to_save, fail_to_serialize, fail_to_sync, interrupted])
def test_a_failing_write_leaves_the_old_head_in_place(
    tmp_path: Path,
    manifest: Manifest,
    fail: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    folder = tmp_path / "best"
    save_head(seeded_head(1), origin_of(manifest, steps=1), folder)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, folder)
        with pytest.raises((OSError, HeadError, KeyboardInterrupt)):
            save_head(seeded_head(2), origin_of(manifest, steps=2), folder)
    stored = load_head(str(folder))
    assert same_weights(stored.head, seeded_head(1))
    assert stored.origin.steps == 1
    assert list(tmp_path.iterdir()) == [folder]


def saved(folder: Path) -> int | None:
    """The seed and steps of the head in a folder, whole, or None where there is none."""
    if not (folder / CONFIG).exists():
        return None
    stored = load_head(str(folder))
    assert same_weights(stored.head, seeded_head(stored.origin.steps))
    return stored.origin.steps


@pytest.mark.parametrize("end", ["before", "after", "all", "oldest", "none", "error"])
@pytest.mark.parametrize("before", [None, 1])
def test_a_writer_that_ends_anywhere(
    tmp_path: Path, manifest: Manifest, before: int | None, end: str
) -> None:
    """Either head is there, whole, and the next one is saved as if nothing had happened."""
    base = tmp_path / "base" / "best"
    base.parent.mkdir()
    if before is not None:
        save_head(seeded_head(before), origin_of(manifest, steps=before), base)
    disk = Disk()
    states: set[int | None] = set()
    shutil.copytree(base.parent, tmp_path / "whole")
    with on(disk):
        save_head(seeded_head(2), origin_of(manifest, steps=2), tmp_path / "whole" / "best")
    assert len(disk.calls) > 10
    for at in range(len(disk.calls) + 1):
        folder = shutil.copytree(base.parent, tmp_path / str(at)) / "best"
        whole = {path.stat().st_ino for path in folder.rglob("*")}
        broken = Disk(at, end if end in ("after", "error") else "before")
        with on(broken):
            try:
                save_head(seeded_head(2), origin_of(manifest, steps=2), folder)
            except (OSError, Killed) as error:
                assert isinstance(error, OSError) == (end == "error")
            else:
                assert end == "error" or at == len(disk.calls)
        if end in LOST:
            broken.lose_power(folder.parent, whole, LOST[end])
        states.add(saved(folder))
        with quick_disk():
            save_head(seeded_head(3), origin_of(manifest, steps=3), folder)
        assert saved(folder) == 3
        assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}
        assert list(folder.parent.iterdir()) == [folder]
        shutil.rmtree(folder.parent)
    assert states == {before, 2}


def test_a_new_head_takes_the_place_of_the_old_one(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "best"
    for steps in (1, 2):
        save_head(seeded_head(steps), origin_of(manifest, steps=steps), folder)
    stored = load_head(str(folder))
    assert same_weights(stored.head, seeded_head(2))
    assert stored.origin.steps == 2
    assert list(tmp_path.iterdir()) == [folder]
