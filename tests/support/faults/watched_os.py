"""The system calls by which a cache changes a disk, each passed through a function of the test.

`cache_schema/storage/local.py` calls them all by name from the modules `os` and `fcntl`, so those
two names are replaced there, and there alone, by objects that forward. Flushing to the disk is left
out: a killed process takes nothing with it that it had handed to the kernel, and what a power
failure takes is simulated (`simulated_disk.py`).
"""

import contextlib
import errno
import fcntl
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final
from unittest import mock

from mav.cache_schema.storage import local as local_objects

CHANGES: Final = (
    "open",
    "write",
    "fsync",
    "link",
    "rename",
    "unlink",
    "close",
    "mkdir",
    "rmdir",
    "utime",
)

Around = Callable[[str, Callable[[], Any], tuple[Any, ...]], Any]
"""Given a call's name, the call itself and its arguments, returns what the call returned."""


class Watched:
    """A module some of whose functions go through `around`."""

    def __init__(self, module: ModuleType, names: tuple[str, ...], around: Around) -> None:
        self._module = module
        self._names = names
        self._around = around

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name not in self._names:
            # No program may rely on the order a file system lists names in. This one puts the root
            # of a cache last, where some put it first.
            return _in_order if name == "scandir" else found

        def call(*args: Any, **options: Any) -> Any:
            def forward() -> Any:
                # Flushing is slow on some disks, and none of the tests here can tell.
                return None if name == "fsync" else found(*args, **options)

            return self._around(name, forward, args)

        return call


def _in_order(path: str) -> list[os.DirEntry[str]]:
    return sorted(os.scandir(path), key=lambda entry: entry.name)


@contextlib.contextmanager
def watching(around: Around) -> Iterator[None]:
    """Pass every call that changes a local cache through a function."""
    with (
        mock.patch.object(local_objects, "os", Watched(os, CHANGES, around)),
        mock.patch.object(local_objects, "fcntl", Watched(fcntl, ("flock",), around)),
    ):
        yield


class Count:
    """Writes down the names of all calls."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        self.names.append(name)
        return call()


class Kill:
    """Kills this process, by a signal that cannot be caught, at the nth call.

    Args:
        at: Number of the call, from 0.
        after: Whether the call still happens.
    """

    def __init__(self, at: int, *, after: bool = False) -> None:
        self._at = at
        self._after = after
        self._numbers = itertools.count()

    def __call__(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        number = next(self._numbers)
        if number == self._at and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return call()
        finally:
            if number == self._at:
                os.kill(os.getpid(), signal.SIGKILL)


class Fail:
    """Lets the nth call of a kind fail.

    Args:
        kind: Name of the call.
        at: Number among the calls of that name, from 0.
        error: Error number.
        lasting: Whether all later calls of that name fail as well.
    """

    def __init__(self, kind: str, at: int, error: int, *, lasting: bool = False) -> None:
        self._kind = kind
        self._at = at
        self._error = error
        self._lasting = lasting
        self._numbers = itertools.count()
        self.failed = 0

    def __call__(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if name != self._kind:
            return call()
        number = next(self._numbers)
        if number != self._at and not (self._lasting and number > self._at):
            return call()
        self.failed += 1
        if name == "close":
            call()  # Linux closes a file even where it reports that writing it back failed
        if name == "write" and self._error == errno.ENOSPC:
            descriptor, data = args
            os.write(descriptor, data[: len(data) // 2])  # what still had room
        error = OSError(self._error, os.strerror(self._error))
        if not isinstance(args[0], int):
            error.filename = str(args[0])  # calls that are given a descriptor know no name
        raise error
