"""A disk that is full from some write on."""

import errno
import os
import stat

import pytest


class FullDisk:
    """Makes the n-th and all later file writes fail, as a full disk does; folders still sync.

    Attributes:
        written: Files written so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, works: int | None) -> None:
        self.written = 0
        self._works = works
        monkeypatch.setattr("mav.cache_schema.storage.local.os.fsync", self)

    def __call__(self, descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            if self.written == self._works:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.written += 1
