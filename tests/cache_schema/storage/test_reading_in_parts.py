"""Objects read in parts, each to memory of its own."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mav.cache_schema.storage.local import LocalObjectStore

_READV = os.readv
_OPEN = os.open
_CLOSE = os.close


def rooms(*sizes: int) -> list[NDArray[np.uint8]]:
    """Buffers that hold something else yet."""
    return [np.full(size, 7, np.uint8) for size in sizes]


@pytest.mark.parametrize("sizes", [(10,), (1, 9), (4, 0, 6), (0, 10, 0), (1,) * 10])
def test_an_object_is_read_in_parts(objects: LocalObjectStore, sizes: tuple[int, ...]) -> None:
    objects.write("a/x", b"0123456789", None)
    parts = rooms(*sizes)
    assert list(objects.read_parts("a/x", iter(parts))) == list(range(len(sizes)))
    assert b"".join(part.tobytes() for part in parts) == b"0123456789"


def test_an_empty_object_is_read_in_no_parts(objects: LocalObjectStore) -> None:
    objects.write("x", b"", None)
    assert list(objects.read_parts("x", [])) == []
    assert list(objects.read_parts("x", rooms(0))) == [0]


def test_parts_may_lie_in_a_larger_array(objects: LocalObjectStore) -> None:
    objects.write("x", b"0123456789", None)
    (whole,) = rooms(12)
    assert list(objects.read_parts("x", [whole[7:11], whole[:6]])) == [0, 1]
    assert whole.tobytes() == b"456789\x070123\x07"


def test_parts_are_told_of_as_soon_as_they_are_full(objects: LocalObjectStore) -> None:
    objects.write("x", b"012345", None)
    parts = rooms(3, 3)
    reading = objects.read_parts("x", parts)
    assert next(reading) == 0
    assert [part.tobytes() for part in parts] == [b"012", b"\7\7\7"]
    assert next(reading) == 1
    assert parts[1].tobytes() == b"345"


@pytest.mark.parametrize(
    ("sizes", "full", "message"),
    [
        ((), 0, "it is longer than expected"),
        ((3, 3), 2, "it is longer than expected"),
        ((3, 5), 1, "it is shorter than expected"),
        ((8,), 0, "it is shorter than expected"),
        ((7, 1), 1, "it is shorter than expected"),
    ],
)
def test_an_object_of_another_size_than_its_parts_is_refused(
    objects: LocalObjectStore, sizes: tuple[int, ...], full: int, message: str
) -> None:
    objects.write("x", b"content", None)
    found = []
    with pytest.raises(ValueError, match=message):
        for number in objects.read_parts("x", rooms(*sizes)):
            found.append(number)  # noqa: PERF402 (what came before the error is wanted)
    assert found == list(range(full))


def test_parts_of_what_is_not_there(objects: LocalObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        list(objects.read_parts("a/x", rooms(1)))
    assert str(caught.value.filename) == str(tmp_path / "place" / "a" / "x")


def test_short_reads_are_gone_on_with(
    objects: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("x", b"0123456789", None)
    calls = []

    def short(descriptor: int, buffers: list[memoryview]) -> int:
        calls.append(len(buffers[0]))
        return _READV(descriptor, [buffers[0][:3]])

    monkeypatch.setattr("mav.cache_schema.storage.local.os.readv", short)
    parts = rooms(8, 2)
    assert list(objects.read_parts("x", parts)) == [0, 1]
    assert b"".join(part.tobytes() for part in parts) == b"0123456789"
    assert calls == [8, 5, 2, 2]


def test_a_failing_read_names_its_file(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("x", b"0123456789", None)

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mav.cache_schema.storage.local.os.readv", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        list(objects.read_parts("x", rooms(10)))
    assert str(caught.value.filename) == str(tmp_path / "place" / "x")


@pytest.mark.parametrize("sizes", [(5, 5), (5, 4), (5, 6)])
def test_no_descriptor_stays_open(
    objects: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    objects.write("x", b"0123456789", None)
    opened, closed = [], []

    def note_open(*arguments: Any) -> int:
        opened.append(_OPEN(*arguments))
        return opened[-1]

    def note_close(descriptor: int) -> None:
        closed.append(descriptor)
        _CLOSE(descriptor)

    monkeypatch.setattr("mav.cache_schema.storage.local.os.open", note_open)
    monkeypatch.setattr("mav.cache_schema.storage.local.os.close", note_close)
    with contextlib.suppress(ValueError):
        list(objects.read_parts("x", rooms(*sizes)))
    assert len(opened) == 1
    reading = objects.read_parts("x", rooms(*sizes))
    next(reading)
    del reading  # left before its end
    assert len(opened) == 2
    assert opened == closed
