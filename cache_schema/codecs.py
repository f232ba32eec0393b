"""Lossless compression of chunks, by numcodecs, and its name in Zarr's metadata."""

from collections.abc import Sequence
from typing import Any, Final

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

from mav.cache_schema.choices import Compression

# Measured on states and codes of real pairs: higher levels store no less and write slower.
_ZSTD_LEVEL: Final = 1
_BLOSC_LEVEL: Final = 1
_BLOSC_BLOCK: Final = 1 << 20
"""Blosc's own choice at this level is so small that half of the gain is lost."""


class ChunkCodec:
    """Compresses and decompresses the bytes of one chunk."""

    def __init__(self, compression: Compression, itemsize: int) -> None:
        """Choose the codec.

        Args:
            compression: `zstd`; or `blosc`, which is Zstandard after grouping the bytes of all
                values by their significance; or `none`.
            itemsize: Bytes of one value.
        """
        self._codec: Any = None
        self._zarr: tuple[BytesBytesCodec, ...] = ()
        if compression == "zstd":
            self._codec = numcodecs.Zstd(level=_ZSTD_LEVEL)
            self._zarr = (ZstdCodec(level=_ZSTD_LEVEL, checksum=False),)
        elif compression == "blosc":
            self._codec = numcodecs.Blosc(
                cname="zstd",
                clevel=_BLOSC_LEVEL,
                shuffle=numcodecs.Blosc.SHUFFLE,
                typesize=itemsize,
                blocksize=_BLOSC_BLOCK,
            )
            self._zarr = (
                BloscCodec(
                    typesize=itemsize,
                    cname="zstd",
                    clevel=_BLOSC_LEVEL,
                    shuffle=BloscShuffle.shuffle,
                    blocksize=_BLOSC_BLOCK,
                ),
            )

    @property
    def stores_as_is(self) -> bool:
        """Whether chunks are stored without compression."""
        return self._codec is None

    @property
    def zarr(self) -> Sequence[BytesBytesCodec]:
        """The codec as Zarr describes it."""
        return self._zarr

    def encode(self, chunk: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a chunk's bytes compressed."""
        return np.frombuffer(self._codec.encode(chunk), np.uint8)

    def decode(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Decompress into a buffer of the chunk's size.

        Raises:
            ValueError: The bytes are not what `encode` made, or of another size.
        """
        try:
            found = np.frombuffer(self._codec.decode(stored), np.uint8)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"it cannot be decompressed: {error}") from error
        if len(found) != len(out):
            raise ValueError(f"it decompresses to {len(found)} bytes, expected {len(out)}")
        out[:] = found
