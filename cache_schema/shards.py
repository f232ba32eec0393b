"""Shards: encoding the rows of one block of one array as one stored object, and decoding it.

The bytes follow Zarr's codec `sharding_indexed`: consecutive chunks, each followed by its crc32c;
then the index, which holds the offset and length of every chunk of the shard as little-endian
uint64, both 2**64 - 1 for a chunk that is omitted; then the crc32c of the index. Chunks after the
last used row are omitted.

Shards are encoded here rather than by zarr-python so that a block is one buffer, filled once and
written once, and so that reading an uncompressed shard takes one read straight into the memory of
its rows and one checksum.
"""

import hashlib
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout
from mav.cache_schema.encoding.codecs import ChunkCodec
from mav.cache_schema.storage.base import ObjectStore

_CHECKSUM_BYTES: Final = 4
_OMITTED: Final = np.uint64(2**64 - 1)
_OTHER_CHUNKS: Final = "its chunks are intact, but they are not those that were committed"


@dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """A shard ready to be stored.

    Attributes:
        data: Its bytes, uint8 [size].
        checksums: SHA-256, in hexadecimal, of the concatenated crc32c of its chunks.
    """

    data: NDArray[np.uint8]
    checksums: str


def shard_bytes(layout: ArrayLayout, rows: int) -> int:
    """Return the size of an uncompressed shard with this many used rows."""
    chunks = -(-rows // layout.chunk[0])
    return chunks * (_chunk_bytes(layout) + _CHECKSUM_BYTES) + _index_bytes(layout)


def encode_shard(layout: ArrayLayout, rows: NDArray[Any]) -> EncodedShard:
    """Encode the used rows of a block.

    Args:
        layout: The array.
        rows: Its rows as stored, [n, ...]; n is at least 1 and at most the rows of a shard.
    """
    assert rows.dtype == np.dtype(layout.dtype), (layout.spec.path, rows.dtype)
    assert rows.shape[1:] == layout.shape[1:], (layout.spec.path, rows.shape)
    assert len(rows) <= layout.shard[0], (layout.spec.path, len(rows))
    assert len(rows) > 0, layout.spec.path
    codec = ChunkCodec(layout.compression, rows.dtype.itemsize)
    parts = _chunks(layout, rows)
    if not codec.stores_as_is:
        parts = [codec.encode(part) for part in parts]
    size = sum(len(part) + _CHECKSUM_BYTES for part in parts)
    data = np.empty(size + _index_bytes(layout), np.uint8)
    index = np.full((layout.shard[0] // layout.chunk[0], 2), _OMITTED, "<u8")
    checksums = []
    at = 0
    for number, part in enumerate(parts):
        end = at + len(part)
        data[at:end] = part
        checksums.append(_checksum(part))
        data[end : end + _CHECKSUM_BYTES] = np.frombuffer(checksums[-1], np.uint8)
        index[number] = at, len(part) + _CHECKSUM_BYTES
        at = end + _CHECKSUM_BYTES
    plain = index.view(np.uint8).reshape(-1)
    data[at:-_CHECKSUM_BYTES] = plain
    data[-_CHECKSUM_BYTES:] = np.frombuffer(_checksum(plain), np.uint8)
    return EncodedShard(data=data, checksums=_digest(checksums))


def read_shard(
    layout: ArrayLayout,
    objects: ObjectStore,
    key: str,
    rows: int,
    checksums: str,
    memory: NDArray[np.uint8] | None = None,
) -> NDArray[Any]:
    """Read the first `rows` rows of a shard and check every byte of them.

    Args:
        layout: The array.
        objects: The store.
        key: Key of the shard.
        rows: Number of used rows.
        checksums: Digest returned by `encode_shard`; it differs from that of any other shard.
        memory: Buffer for the rows, uint8 [at least `shard_memory`]; allocated if None.

    Returns:
        The rows as stored, [rows, ...].

    Raises:
        FileNotFoundError: There is no such shard.
        ValueError: The bytes are damaged, or belong to another shard.
    """
    if not ChunkCodec(layout.compression, np.dtype(layout.dtype).itemsize).stores_as_is:
        return decode_shard(layout, objects.read(key), rows, checksums, memory)
    out = _chunk_memory(layout, rows, memory)
    written = np.empty((len(out), _CHECKSUM_BYTES), np.uint8)
    index = np.empty(_index_bytes(layout), np.uint8)
    parts = [part for pair in zip(out, written, strict=True) for part in pair]
    try:
        wrong = [
            number // 2
            for number in objects.read_parts(key, [*parts, index])
            # When its checksum arrives, the chunk is still in the processor's cache.
            if number % 2 and _checksum(out[number // 2]) != parts[number].tobytes()
        ]
        as_expected = index.tobytes() == _plain_index(layout, len(out)).tobytes()
    except ValueError:
        as_expected = False
    if not as_expected:
        # Another program may have placed chunks differently; only the whole shard can tell.
        return decode_shard(layout, objects.read(key), rows, checksums, memory)
    if wrong:
        raise ValueError(f"the checksum of chunk {wrong[0]} does not match its bytes")
    if _digest([written.tobytes()]) != checksums:
        raise ValueError(_OTHER_CHUNKS)
    return _as_rows(layout, out, rows)


def shard_memory(layout: ArrayLayout, rows: int) -> int:
    """Return the decoded size of the chunks that hold this many rows."""
    return -(-rows // layout.chunk[0]) * _chunk_bytes(layout)


def decode_shard(
    layout: ArrayLayout,
    data: NDArray[np.uint8],
    rows: int,
    checksums: str,
    memory: NDArray[np.uint8] | None = None,
) -> NDArray[Any]:
    """Decode the first `rows` rows of a shard and check every byte of them.

    Args:
        layout: The array.
        data: The stored object, uint8 [size].
        rows: Number of used rows.
        checksums: Digest returned by `encode_shard`; it differs from that of any other shard.
        memory: Buffer for the rows, uint8 [at least `shard_memory`]; allocated if None.

    Returns:
        The rows as stored, [rows, ...].

    Raises:
        ValueError: The bytes are damaged, or belong to another shard.
    """
    index = _read_index(layout, data)
    codec = ChunkCodec(layout.compression, np.dtype(layout.dtype).itemsize)
    used = -(-rows // layout.chunk[0])
    if (index[:used] == _OMITTED).any() or (index[used:] != _OMITTED).any():
        raise ValueError(f"its index does not hold exactly the {used} chunks in use")
    out = _chunk_memory(layout, rows, memory)
    stored_checksums = []
    for number, (start, size) in enumerate(index[:used].tolist()):
        end = start + size - _CHECKSUM_BYTES
        if not 0 <= start <= end < start + size <= len(data) - _index_bytes(layout):
            raise ValueError(f"its index places chunk {number} outside the shard")
        stored, checksum = data[start:end], data[end : end + _CHECKSUM_BYTES].tobytes()
        if _checksum(stored) != checksum:
            raise ValueError(f"the checksum of chunk {number} does not match its bytes")
        stored_checksums.append(checksum)
        if not codec.stores_as_is:
            codec.decode(stored, out[number])
        elif len(stored) == out.shape[1]:
            out[number] = stored
        else:
            raise ValueError(f"chunk {number} has {len(stored)} bytes, expected {out.shape[1]}")
    if _digest(stored_checksums) != checksums:
        raise ValueError(_OTHER_CHUNKS)
    return _as_rows(layout, out, rows)


def _chunk_memory(
    layout: ArrayLayout, rows: int, memory: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Return a buffer for the chunks that hold this many rows, [chunks, bytes of a chunk]."""
    size = shard_memory(layout, rows)
    buffer = np.empty(size, np.uint8) if memory is None else memory[:size]
    return buffer.reshape(-1, _chunk_bytes(layout))


def _as_rows(layout: ArrayLayout, chunks: NDArray[np.uint8], rows: int) -> NDArray[Any]:
    values = chunks.reshape(-1).view(layout.dtype).reshape(-1, *layout.shape[1:])
    return values[:rows]


def _plain_index(layout: ArrayLayout, chunks: int) -> NDArray[np.uint8]:
    """Return the index, with its checksum, of a shard of uncompressed chunks."""
    size = _chunk_bytes(layout) + _CHECKSUM_BYTES
    index = np.full((layout.shard[0] // layout.chunk[0], 2), _OMITTED, "<u8")
    index[:chunks, 0] = np.arange(chunks, dtype="<u8") * np.uint64(size)
    index[:chunks, 1] = size
    plain = index.view(np.uint8).reshape(-1)
    return np.concatenate([plain, np.frombuffer(_checksum(plain), np.uint8)])


def _chunks(layout: ArrayLayout, rows: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """Return the bytes of each chunk in use, the last one padded with zeros."""
    step = layout.chunk[0]
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    if len(parts[-1]) < step:
        padded = np.zeros(layout.chunk, rows.dtype)
        padded[: len(parts[-1])] = parts[-1]
        parts[-1] = padded
    return [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]


def _read_index(layout: ArrayLayout, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    size = _index_bytes(layout)
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes cannot hold its index of {size} bytes")
    plain = data[-size:-_CHECKSUM_BYTES]
    if _checksum(plain) != data[-_CHECKSUM_BYTES:].tobytes():
        raise ValueError("the checksum of its index does not match")
    return np.frombuffer(plain.tobytes(), "<u8").reshape(-1, 2)


def _chunk_bytes(layout: ArrayLayout) -> int:
    return prod(layout.chunk) * np.dtype(layout.dtype).itemsize


def _index_bytes(layout: ArrayLayout) -> int:
    return layout.shard[0] // layout.chunk[0] * 16 + _CHECKSUM_BYTES


def _checksum(data: NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CHECKSUM_BYTES, "little")


def _digest(checksums: list[bytes]) -> str:
    return hashlib.sha256(b"".join(checksums)).hexdigest()
