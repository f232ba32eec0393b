"""Quantized hidden states: one byte per value, and scales.

- `int8`: x = code * token_scale * channel_scale. The scale of a channel is its root mean square
  over the block; the scale of a token is the largest magnitude after dividing by the channel
  scales, divided by 127. In hidden states a few channels are tens of times larger than all others
  in every token; without the channel scales, the others would be left with three or four bits.
- `fp8`: x = code * token_scale. The code is a float8 with 4 exponent and 3 mantissa bits (OCP E4M3,
  which has no infinities); the largest magnitude of a token is mapped to 448.

States are quantized with torch, on the device that computed them. This module dequantizes them and
thereby defines what codes mean.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.encoding.dtypes import from_float32

QUANTIZED: Final = ("hidden_states", "final_hidden_state")
"""Paths of the arrays that may be quantized."""
CODES: Final[dict[str, str]] = {"int8": "int8", "fp8": "uint8"}
"""Storage of the states -> NumPy type of the codes."""
LARGEST: Final[dict[str, float]] = {"int8": 127.0, "fp8": 448.0}
"""Storage of the states -> value of the largest code."""
PER_TOKEN: Final = "_token_scale"  # noqa: S105 (not a password)
PER_CHANNEL: Final = "_channel_scale"
_LARGEST_FLOAT16: Final = 65504.0
_STEP_VALUES: Final = 1 << 18
"""Values converted at a time, few enough to stay in the processor's cache."""


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
    """Return the states that codes represent.

    Args:
        codes: int8, or uint8 bits of float8, [N, …].
        token_scale: float32, the shape of `codes` without its last dimension.
        channel_scale: float32, the shape of `codes` without its first dimension; None for fp8.
        dtype: Type of the states in the manifest.

    Returns:
        States as they would be stored unquantized, the shape of `codes`.
    """
    out = np.empty(codes.shape, from_float32(np.empty(0, np.float32), dtype).dtype)
    step = max(1, _STEP_VALUES * len(codes) // max(1, codes.size))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        wide = _FP8_VALUES[codes[part]] if codes.dtype == np.uint8 else codes[part].astype("f4")
        if channel_scale is not None:
            wide *= channel_scale
        wide *= token_scale[part][..., None]
        if dtype == "float16":
            # A code that was rounded up may represent more than the largest float16.
            np.clip(wide, -_LARGEST_FLOAT16, _LARGEST_FLOAT16, out=wide)
        out[part] = from_float32(wide, dtype)
    return out


def restore(rows: Mapping[str, NDArray[Any]], dtype: str) -> dict[str, NDArray[Any]]:
    """Return the rows of a block with quantized states dequantized.

    Args:
        rows: Rows as stored, by path.
        dtype: Type of the states in the manifest.
    """
    restored = dict(rows)
    for path in QUANTIZED:
        if f"{path}{PER_TOKEN}" in rows:
            channel = restored.pop(f"{path}{PER_CHANNEL}", None)
            restored[path] = dequantize(
                rows[path],
                restored.pop(f"{path}{PER_TOKEN}"),
                None if channel is None else channel[0],
                dtype,
            )
    return restored
