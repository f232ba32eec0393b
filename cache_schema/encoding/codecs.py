"""Lossless compression of chunks, by numcodecs, and its name in Zarr's metadata."""

from collections.abc import Sequence
from typing import Any, Final

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

from mav.cache_schema.choices import Compression

# Measured on states and codes of real pairs: higher levels save nothing and are slower.
_ZSTD_LEVEL: Final = 1
_BLOSC_LEVEL: Final = 1
_BLOSC_BLOCK: Final = 1 << 20
"""Blosc's own block size at this level is so small that half of the gain is lost."""


class ChunkCodec:
    """Compresses and decompresses the bytes of one chunk."""

    def __init__(self, compression: Compression, itemsize: int) -> None:
        """Choose the codec.

        Args:
            compression: `none`; `zstd`; or `blosc`, which is Zstandard after a byte shuffle.
            itemsize: Bytes of one value.
        """
        self._compression: Compression = compression
        self._itemsize = itemsize
        self._codec: Any = None
        if compression == "zstd":
            self._codec = numcodecs.Zstd(level=_ZSTD_LEVEL)
        elif compression == "blosc":
            self._codec = numcodecs.Blosc(
                cname="zstd",
                clevel=_BLOSC_LEVEL,
                shuffle=numcodecs.Blosc.SHUFFLE,
                typesize=itemsize,
                blocksize=_BLOSC_BLOCK,
            )

    @property
    def stores_as_is(self) -> bool:
        """Whether chunks are stored uncompressed."""
        return self._codec is None

    @property
    def zarr(self) -> Sequence[BytesBytesCodec]:
        """The codecs that describe this one in Zarr's metadata."""
        if self._compression == "zstd":
            return (ZstdCodec(level=_ZSTD_LEVEL, checksum=False),)
        if self._compression == "blosc":
            blosc = BloscCodec(
                typesize=self._itemsize,
                cname="zstd",
                clevel=_BLOSC_LEVEL,
                shuffle=BloscShuffle.shuffle,
                blocksize=_BLOSC_BLOCK,
            )
            return (blosc,)
        return ()

    def encode(self, chunk: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the compressed bytes of a chunk."""
        return np.frombuffer(self._codec.encode(chunk), np.uint8)

    def decode(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Decompress a chunk into a buffer of its size.

        Raises:
            ValueError: The bytes cannot be decompressed, or not to this size.
        """
        try:
            chunk = np.frombuffer(self._codec.decode(stored), np.uint8)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"it cannot be decompressed: {error}") from error
        if len(chunk) != len(out):
            raise ValueError(f"it decompresses to {len(chunk)} bytes, expected {len(out)}")
        out[:] = chunk
