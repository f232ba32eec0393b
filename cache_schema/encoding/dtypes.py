"""How the element types of hidden states and logits are stored.

Zarr (as of zarr-python 3.1) has no bfloat16, so the bits of bfloat16 values are stored as
little-endian uint16. The manifest names the true type; readers reinterpret the bits and never
convert the numbers.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

STORED_AS: Final[dict[str, str]] = {
    "bfloat16": "uint16",
    "float16": "float16",
    "float32": "float32",
}
"""Element type in the manifest -> NumPy type of the stored array."""


def itemsize(dtype: str) -> int:
    """Return the bytes per value of an element type in the manifest."""
    return np.dtype(STORED_AS[dtype]).itemsize


def to_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Convert stored values to float32, exactly.

    Args:
        values: An array as stored, any shape.
        dtype: Its true type, a key of `STORED_AS`.

    Returns:
        float32 array of the same shape.
    """
    if dtype != "bfloat16":
        return values.astype(np.float32)
    # bfloat16 is the upper half of a float32.
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round float32 values to an element type, to nearest, ties to even.

    Args:
        values: float32, any shape.
        dtype: A key of `STORED_AS`.

    Returns:
        The values as stored, of the same shape.
    """
    if dtype != "bfloat16":
        return values.astype(STORED_AS[dtype])
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    # Rounding up could turn the bits of a NaN into those of an infinity or a zero.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))
