"""How soon commands and caches are there: `python -m benchmarks.startup --json`.

    bare                 Python itself, doing nothing
    help                 `mav --help` and `mav train --help`
    inspect              `mav inspect` of a cache, of so many blocks
    folder, bucket       opening that cache for reading, in a process that runs

Commands are processes of their own, in turns with the bare one; seconds are medians, and
`over_bare` is the median of ratios within a round. The bucket is the same folder, every request to
which takes `--request-ms`, a listing one for each page of a thousand objects, as object storage
has it.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final
from unittest import mock

import numpy as np
import torch

from benchmarks.synthetic import (
    CacheShape,
    machine,
    parse_for_folder,
    run_in_folder,
    say,
    write_cache,
)
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store

_PAGE: Final = 1000
_ANSWER: Final = 16
_SHAPE: Final = CacheShape(hidden_size=32, pooled_size=32, vocab_size=64, block_tokens=2 * _ANSWER)


class Bucket:
    """A folder that answers as slowly as object storage.

    Args:
        objects: The folder.
        seconds: What each request takes.
    """

    def __init__(self, objects: ObjectStore, seconds: float) -> None:
        self._objects = objects
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def read(self, key: str) -> Any:
        """Read an object, after one request's time."""
        time.sleep(self._seconds)
        return self._objects.read(key)

    def sizes(self) -> dict[str, int]:
        """List the folders side by side, each page by page."""
        found = self._objects.sizes()
        counts: dict[str, int] = {}
        for key in found:
            folder = key.partition("/")[0]
            counts[folder] = counts.get(folder, 0) + 1
        time.sleep(self._seconds)
        with ThreadPoolExecutor(len(counts)) as pool:
            pages = [-(-count // _PAGE) for count in counts.values()]
            list(pool.map(lambda number: time.sleep(number * self._seconds), pages))
        return found

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """Return None, as objects in a bucket are not files."""
        return None


@contextmanager
def _in_bucket(seconds: float) -> Iterator[None]:
    def opened(location: str | Path) -> Any:
        return Bucket(open_object_store(location), seconds)

    with mock.patch("mav.cache_schema.reader.open_object_store", opened):
        yield


def _command(*arguments: str) -> Callable[[], float]:
    def seconds() -> float:
        started = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return perf_counter() - started

    return seconds


def _opening(root: Path) -> float:
    started = perf_counter()
    CacheReader(root)
    return perf_counter() - started


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure; return what is printed."""
    say(f"writing a cache of {asked.blocks:,} blocks")
    root = work / "cache"
    with mock.patch("os.fsync"):  # the disk's time is not what is measured
        write_cache(root, np.full((asked.blocks, 2), _ANSWER, np.int32), _SHAPE)
    ways: dict[str, Callable[[], float]] = {
        "bare": _command("-c", "pass"),
        "help": _command("-m", "mav", "--help"),
        "help of train": _command("-m", "mav", "train", "--help"),
        "inspect": _command("-m", "mav", "inspect", str(root)),
        "folder": lambda: _opening(root),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*ways, "bucket")}
    for number in range(asked.rounds):
        say(f"round {number + 1} of {asked.rounds}")
        for name, way in ways.items():
            taken[name].append(way())
        with _in_bucket(asked.request_ms / 1000):
            taken["bucket"].append(_opening(root))
    return {
        "blocks": asked.blocks,
        "request_ms": asked.request_ms,
        "rounds": asked.rounds,
        "seconds": {name: median(seconds) for name, seconds in taken.items()},
        "over_bare": {
            name: median(one / bare for one, bare in zip(seconds, taken["bare"], strict=True))
            for name, seconds in taken.items()
        },
        "machine": machine(torch.device("cpu")),
    }


def table(found: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    rows = [
        f"{name:<16}{seconds:>8.2f} s  {found['over_bare'][name]:>7.1f} of bare"
        for name, seconds in found["seconds"].items()
    ]
    about = f"{found['blocks']:,} blocks, {found['request_ms']:g} ms a request to the bucket"
    return "\n".join([*rows, about])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--request-ms", type=float, default=30.0)
    return parse_for_folder(parser, argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    run_in_folder(parse(argv), measure, table)


if __name__ == "__main__":
    main()
