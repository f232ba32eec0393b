"""The header of a GGUF file: names and types of its tensors, and the file's expected size.

`gguf.GGUFReader` makes an array of every token of the vocabulary, which takes many seconds.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

from gguf import GGML_QUANT_SIZES

from mav.cache_schema.errors import BaseModelError

_MAGIC: Final = b"GGUF"
_FILE_TYPE: Final = b"general.file_type"
_ALIGNMENT: Final = b"general.alignment"
_USUAL_ALIGNMENT: Final = 32
_STRING, _ARRAY = 8, 9
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes."""
_UINT32: Final = 4
_LONGEST_KEY: Final = (1 << 16) - 1
_MOST_DIMENSIONS: Final = 8


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """The header of a GGUF file.

    Attributes:
        file_type: `general.file_type`, or None if the file has none.
        elements: Name of a tensor -> number of its values.
        least_bytes: Bytes the file has if all its tensors are in it.
    """

    file_type: int | None
    elements: dict[str, int]
    least_bytes: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file, and check that the file is complete.

    Raises:
        BaseModelError: It is not a GGUF file, or it ends before its last tensor.
    """
    try:
        with path.open("rb") as file:
            header = _header(file)
    except (OSError, ValueError, struct.error) as error:
        raise BaseModelError(f"{path}: cannot be read as GGUF: {error}") from error
    size = path.stat().st_size
    if size < header.least_bytes:
        raise BaseModelError(
            f"{path}: got {size:,} bytes, expected at least {header.least_bytes:,} by its "
            f"header: the file is truncated. Download or copy it again."
        )
    return header


def _header(file: IO[bytes]) -> GGUFHeader:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin as one")
    _, tensors, values = struct.unpack("<IQQ", file.read(20))
    fields: dict[bytes, int] = {}
    for _ in range(values):
        key, kind = _key(file), _number(file, "<I")
        if key in (_FILE_TYPE, _ALIGNMENT) and kind == _UINT32:
            fields[key] = _number(file, "<I")
        else:
            _skip(file, kind)
    elements, end = {}, 0
    for _ in range(tensors):
        name = _key(file).decode()
        dimensions = _number(file, "<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name} of {dimensions} dimensions")
        elements[name] = prod(_number(file, "<Q") for _ in range(dimensions))
        block, size = _block(name, _number(file, "<I"))
        end = max(end, _number(file, "<Q") + elements[name] // block * size)
    alignment = fields.get(_ALIGNMENT, _USUAL_ALIGNMENT)
    begins = -(-file.tell() // alignment) * alignment
    return GGUFHeader(
        file_type=fields.get(_FILE_TYPE), elements=elements, least_bytes=begins + end if end else 0
    )


def _block(name: str, kind: int) -> tuple[int, int]:
    """Return the values and the bytes of a block of a type."""
    sizes: dict[Any, tuple[int, int]] = GGML_QUANT_SIZES
    if kind not in sizes:
        raise ValueError(f"{name} has the unknown type {kind}")
    return sizes[kind]


def _number(file: IO[bytes], form: str) -> int:
    (number,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return int(number)


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
