"""A disk that is full: one clear message, nothing half-written, and the run goes on later."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch

from mav.cache_schema.reader import CacheReader
from tests.support.caches.written_caches import leftovers
from tests.support.running.commands import extract_args, mav, refused
from tests.support.running.refusals import DATA, World, train_args


def fill_disk(patch: pytest.MonkeyPatch, works: int) -> list[int]:
    """Let file writes fail after some, as on a full disk; return those that work, as they do."""
    written: list[int] = []

    def full(descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        if len(written) >= works:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(descriptor)

    patch.setattr(os, "fsync", full)
    return written


@pytest.fixture(scope="module")
def extract_writes(world: World, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Number of files that an extraction writes."""
    with pytest.MonkeyPatch.context() as patch:
        written = fill_disk(patch, 1_000_000)
        assert (
            mav(
                *extract_args(world.base, world.data, tmp_path_factory.mktemp("x") / "cache")
            ).exit_code
            == 0
        )
    return len(written)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_disk_that_is_full_while_extracting(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extract_writes: int,
    share: float,
) -> None:
    root = tmp_path / "cache"
    with monkeypatch.context() as patch:
        fill_disk(patch, round(share * (extract_writes - 1)))
        message = refused(DATA, *extract_args(world.base, world.data, root))
    assert "No space left on device. The disk is full; free some space. The same" in message
    assert leftovers(tmp_path) == []
    assert mav(*extract_args(world.base, world.data, root)).exit_code == 0
    assert len(CacheReader(root).pair_id) == 12


@pytest.mark.parametrize("works", [0, 3, 8])
def test_disk_that_is_full_while_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_disk(patch, works)
        message = refused(DATA, *train_args(world.cache, run))
    assert "The disk is full; free some space. The same command with --resume continues" in message
    assert leftovers(tmp_path) == []
    assert mav(*train_args(world.cache, run), "--resume").exit_code == 0
    weights = "last/model.safetensors"
    assert (run / weights).read_bytes() == (world.head / weights).read_bytes()


@pytest.mark.parametrize("works", [0, 4])
def test_disk_that_is_full_while_safetensors_writes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: int
) -> None:
    # It raises this on a full disk (safetensors 0.8 on a tmpfs without room), not an OSError.
    written = iter(range(works))
    save = safetensors.torch.save_file

    def full(tensors: Any, path: Path, *args: Any) -> None:
        if next(written, None) is None:
            path.write_bytes(b"\x00" * 100)
            raise safetensors.SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
        save(tensors, path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        message = refused(DATA, *train_args(world.cache, tmp_path / "run"))
    assert "No space left on device" in message
    assert leftovers(tmp_path) == []
    assert mav(*train_args(world.cache, tmp_path / "run"), "--resume").exit_code == 0
