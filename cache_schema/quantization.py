"""Lossy storage of hidden states: one byte per value, and scales.

- `int8`: x = code * token_scale * channel_scale. A channel's scale is its root mean square over the
  block, a token's the largest of what remains over 127. Hidden states have a few channels that are
  tens of times larger than the rest in every token; without the channel's scale these would leave
  the rest three or four bits.
- `fp8`: x = code * token_scale, the code being a float8 of 4 exponent and 3 mantissa bits (OCP
  E4M3, no infinities), the largest value of a token mapped to 448.

Quantizing is done with torch, where the states are; this module has the way back, which is the
definition.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.dtypes import from_float32

StatesStorage = Literal["computed", "int8", "fp8"]

QUANTIZED: Final = ("hidden_states", "final_hidden_state")
"""Paths of the arrays that may be stored so."""
CODES: Final[dict[str, str]] = {"int8": "int8", "fp8": "uint8"}
"""How states are stored -> NumPy type of the codes."""
LARGEST: Final[dict[str, float]] = {"int8": 127.0, "fp8": 448.0}
"""How states are stored -> the largest code's value."""
PER_TOKEN: Final = "_token_scale"  # noqa: S105 (no password)
PER_CHANNEL: Final = "_channel_scale"
_LARGEST_FLOAT16: Final = 65504.0
_AT_ONCE: Final = 1 << 18
"""Values widened at a time, so that they stay in the processor's cache."""


def _fp8_values() -> NDArray[np.float32]:
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    size = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )
    size[(bits & 127) == 127] = np.nan
    return np.where(bits < 128, size, -size).astype(np.float32)


_FP8_VALUES: Final = _fp8_values()


def dequantize(
    codes: NDArray[Any],
    token_scale: NDArray[np.float32],
    channel_scale: NDArray[np.float32] | None,
    dtype: str,
) -> NDArray[Any]:
    """Return the states that codes stand for.

    Args:
        codes: int8, or uint8 bits of float8, [N, …].
        token_scale: float32, the shape of `codes` without its last dimension.
        channel_scale: float32, the shape of `codes` without its first dimension; with int8.
        dtype: Manifest type of the states.

    Returns:
        States as they would be stored otherwise, the shape of `codes`.
    """
    out = np.empty(codes.shape, from_float32(np.empty(0, np.float32), dtype).dtype)
    step = max(1, _AT_ONCE * len(codes) // max(1, codes.size))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        wide = _FP8_VALUES[codes[part]] if codes.dtype == np.uint8 else codes[part].astype("f4")
        if channel_scale is not None:
            wide *= channel_scale
        wide *= token_scale[part][..., None]
        if dtype == "float16":
            # A code rounded up may stand for more than the largest value there is.
            np.clip(wide, -_LARGEST_FLOAT16, _LARGEST_FLOAT16, out=wide)
        out[part] = from_float32(wide, dtype)
    return out


def restore(rows: Mapping[str, NDArray[Any]], dtype: str) -> dict[str, NDArray[Any]]:
    """Return the rows of a block with quantized states replaced by the states they stand for.

    Args:
        rows: Rows as stored, by path.
        dtype: Manifest type of the states.
    """
    found = dict(rows)
    for path in QUANTIZED:
        if f"{path}{PER_TOKEN}" in rows:
            channel = found.pop(f"{path}{PER_CHANNEL}", None)
            found[path] = dequantize(
                rows[path],
                found.pop(f"{path}{PER_TOKEN}"),
                None if channel is None else channel[0],
                dtype,
            )
    return found
