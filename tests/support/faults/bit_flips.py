"""Bits of a cache that are flipped one at a time, and the check that each is found."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.records import STATIC_RECORD, commit_key
from mav.cache_schema.root import ROOT
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import VerifyReport, verify
from tests.support.caches.written_caches import Rows, all_same_bits, read_all, write

COMPRESSIONS: Final = ("none", "zstd", "blosc")
KINDS: Final = (
    "chunk",
    "checksum of a chunk",
    "index",
    "plan",
    "unembedding",
    "description",
    "root",
    "commit record",
    "layout record",
)
NOT_READ: Final = ("description",)
"""Zarr's metadata of arrays is for other programs, so that damage to it spoils no value."""
FLIPS: Final = 76
"""Flips of each kind under each compression: 2,052 in all, 228 of each kind."""
PARTS: Final = 3
"""The flips of a kind are checked in so many parts, each spread over all of its objects."""
_CHUNK_BYTES: Final = 48

Ranges = list[tuple[str, range]]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A complete cache without damage.

    Attributes:
        root: Its folder.
        values: All that is read from it.
        ranges: Kind of bytes -> key and positions of all its bytes.
    """

    root: Path
    values: Rows
    ranges: dict[str, Ranges]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One bit of one object."""

    kind: str
    key: str
    byte: int
    bit: int


def make_sound(root: Path, compression: str) -> Sound:
    """Write a cache of three blocks, and tell where which kind of bytes lies."""
    options = {"compression": compression, "has_bias": True}
    manifest, _ = write(root, **options)
    return Sound(root=root, values=read_all(root), ranges=_ranges(root, manifest))


def draw(sound: Sound, kind: str, count: int, seed: int) -> list[Flip]:
    """Draw different flips of a kind, every one of its objects as often as any other."""
    generator = np.random.default_rng(seed)
    objects: dict[str, list[range]] = {}
    for key, places in sound.ranges[kind]:
        objects.setdefault(key, []).append(places)
    found: set[tuple[str, int, int]] = set()
    keys = sorted(objects)
    while len(found) < count:
        key = keys[len(found) % len(keys)]
        bytes_of = np.concatenate([np.arange(part.start, part.stop) for part in objects[key]])
        found.add((key, int(generator.choice(bytes_of)), int(generator.integers(8))))
    return [Flip(kind=kind, key=key, byte=byte, bit=bit) for key, byte, bit in sorted(found)]


def check_flip(sound: Sound, flip: Flip) -> bool:
    """Check that a flip is found, and read as the right values or not at all.

    Returns:
        Whether reading was refused.
    """
    file = sound.root / flip.key
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[flip.byte] ^= 1 << flip.bit
    file.write_bytes(damaged)
    try:
        assert flip.key in _complaint(sound.root), f"{flip}: not found by a full verification"
        try:
            values = read_all(sound.root)
        except CacheError:
            return True
        assert all_same_bits(values, sound.values), f"{flip}: wrong values were read"
        return False
    finally:
        file.write_bytes(whole)


def check_flips(sound: Sound, flips: list[Flip]) -> None:
    """Check flips of one kind; reading refuses all of them, or none where nothing is read."""
    refused = Counter(check_flip(sound, flip) for flip in flips)
    assert refused == {flips[0].kind not in NOT_READ: len(flips)}


def named(report: VerifyReport) -> str:
    """Return all that a verification complains of, a line each."""
    lines = [str(problem) for problems in report.damaged_blocks.values() for problem in problems]
    return "\n".join([*map(str, report.damaged_static), *lines])


def _complaint(root: Path) -> str:
    try:
        report = verify(open_object_store(root), full=True)
    except CacheError as error:
        return str(error)
    assert report.sound == (not named(report))
    return named(report)


def _ranges(root: Path, manifest: Manifest) -> dict[str, Ranges]:
    """Return where the bytes of each kind lie."""
    found: dict[str, Ranges] = {kind: [] for kind in KINDS}
    for layout in layouts(manifest).values():
        for number in range(layout.shards):
            key = shard_key(layout, number)
            if layout.spec.kind == "block":
                for kind, places in _parts(layout, (root / key).read_bytes()):
                    found[kind].append((key, places))
            else:
                found[layout.spec.kind].append((key, range((root / key).stat().st_size)))
    known = {key for ranges in found.values() for key, _ in ranges}
    single = {ROOT: "root", STATIC_RECORD: "layout record"}
    single |= {commit_key(block): "commit record" for block in range(manifest.plan.blocks)}
    for key, size in open_object_store(root).sizes().items():
        if key not in known:
            found[single.get(key, "description")].append((key, range(size)))
    assert all(key.endswith("/zarr.json") for key, _ in found["description"])
    return found


def _parts(layout: ArrayLayout, data: bytes) -> Iterator[tuple[str, range]]:
    """Cut the bytes of a shard into chunks, their checksums, and the index with its own."""
    chunks = layout.shard[0] // layout.chunk[0]
    start = len(data) - 16 * chunks - 4
    yield "index", range(start, len(data))
    index = np.frombuffer(data[start:-4], "<u8").reshape(-1, 2)
    used = index[index[:, 0] != np.uint64(2**64 - 1)]
    for at, size in used.tolist():
        yield "chunk", range(at, at + size - 4)
        yield "checksum of a chunk", range(at + size - 4, at + size)
    assert int(used[:, 1].sum()) == start, "a shard has bytes that are none of these"


@contextlib.contextmanager
def small_chunks() -> Iterator[None]:
    """Make chunks of a few rows, objects of the unembedding of two chunks, and few threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mav.cache_schema.arrays.INNER_CHUNK_BYTES", _CHUNK_BYTES)
        patch.setattr("mav.cache_schema.arrays._MOST_CHUNKS", 2)
        # Starting a thread for each record takes longer than to read them all.
        patch.setattr("mav.cache_schema.commits._FILES_AT_ONCE", 1)
        yield
