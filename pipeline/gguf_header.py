"""The beginning of a GGUF file, as far as it takes to tell what its tensors are stored in.

`gguf.GGUFReader` reads all of a file's metadata, which takes many seconds where the vocabulary is
large. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from typing import IO, Final

_MAGIC: Final = b"GGUF"
_FILE_TYPE: Final = b"general.file_type"
_STRING, _ARRAY = 8, 9
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes."""
_UINT32: Final = 4
_LONGEST_KEY: Final = (1 << 16) - 1


def gguf_file_type(file: IO[bytes]) -> int | None:
    """Return the number that `general.file_type` has, or None where the file does not have it.

    Args:
        file: The file, at its beginning.

    Raises:
        ValueError: It is no GGUF file.
        struct.error: It ends too early.
    """
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin as one")
    _, _, values = struct.unpack("<IQQ", file.read(20))
    for _ in range(values):
        key, kind = _key(file), _number(file, "<I")
        if key == _FILE_TYPE and kind == _UINT32:
            return _number(file, "<I")
        _skip(file, kind)
    return None


def _number(file: IO[bytes], form: str) -> int:
    (found,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return int(found)


def _key(file: IO[bytes]) -> bytes:
    length = _number(file, "<Q")
    if length > _LONGEST_KEY:
        raise ValueError(f"a key of {length} bytes")
    return file.read(length)


def _skip(file: IO[bytes], kind: int, count: int = 1) -> None:
    if kind in _SIZES:
        file.seek(_SIZES[kind] * count, 1)
    elif kind == _STRING:
        for _ in range(count):
            file.seek(_number(file, "<Q"), 1)
    elif kind == _ARRAY and count == 1:
        inner = _number(file, "<I")
        _skip(file, inner, _number(file, "<Q"))
    else:
        raise ValueError(f"a value of an unknown type, {kind}")
