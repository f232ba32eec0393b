"""A disk on which a writer can be killed, fail or lose power at any of its operations."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest


class Killed(BaseException):
    """Ends a writer where it stands."""


LOST: Final = {"all": slice(None), "oldest": slice(1), "none": slice(0)}
"""Which renames a power failure takes back."""

OPERATIONS: Final = ("mkdir", "chmod", "replace", "fsync", "unlink", "rmdir")


@dataclass(frozen=True)
class Renamed:
    """A rename that its folder was not yet flushed after."""

    source: Path
    target: Path
    replaced: bytes | None


class Disk:
    """Records the operations of a writer, and lets it be killed at one of them, or the one fail.

    Args:
        at: Number of the operation, from 0; none if negative.
        end: `before` or `after` it the writer is killed, or it fails with an `error`.
    """

    def __init__(self, at: int = -1, end: str = "") -> None:
        self.calls: list[str] = []
        self.dead = False
        self._at, self._end = at, end
        self._flushed: dict[int, int] = {}
        self._renamed: list[Renamed] = []

    def call(self, name: str, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(name)
        if number == self._at and self._end == "before":
            self._die()
        if number == self._at and self._end == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        if name == "replace":
            source, target = Path(args[0]), Path(args[1])
            replaced = target.read_bytes() if target.is_file() else None
            self._renamed.append(Renamed(source, target, replaced))
        try:
            return self._flush(args[0]) if name == "fsync" else original(*args, **options)
        finally:
            if number == self._at and self._end == "after":
                self._die()

    def _die(self) -> None:
        self.dead = True
        raise Killed

    def _flush(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._flushed[status.st_ino] = status.st_size
        if stat.S_ISDIR(status.st_mode):
            self._renamed = [
                r for r in self._renamed if r.target.parent.stat().st_ino != status.st_ino
            ]

    def lose_power(self, root: Path, whole: set[int], lost: slice) -> None:
        """Take back what was not flushed: contents of files, and perhaps renames.

        Args:
            root: What is on the disk.
            whole: Numbers of the files that were on it before.
            lost: Which of the renames that were not flushed are taken back.
        """
        for renamed in reversed(self._renamed[lost]):
            if renamed.target.exists() and not renamed.source.exists():
                renamed.target.rename(renamed.source)
                if renamed.replaced is not None:
                    renamed.target.write_bytes(renamed.replaced)
                    whole.add(renamed.target.stat().st_ino)
        for path in root.rglob("*"):
            known = path.stat()
            if path.is_file() and known.st_ino not in whole:
                flushed = self._flushed.get(known.st_ino)
                if flushed != known.st_size:
                    os.truncate(path, known.st_size // 2)


@contextlib.contextmanager
def on(disk: Disk) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            original = getattr(os, name)

            def call(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
                return disk.call(name, original, *args, **options)

            patch.setattr(os, name, call)
        yield


def quick_disk() -> contextlib.AbstractContextManager[None]:
    """Force nothing to the disk."""
    return on(Disk())
