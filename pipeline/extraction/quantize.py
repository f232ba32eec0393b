"""Quantizing the hidden states of a block, as `cache_schema.encoding.quantization` defines codes.

Shape legend: N tokens of a block, … the remaining dimensions but the last, W channels.
"""

from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.choices import StatesStorage
from mav.cache_schema.encoding.quantization import (
    LARGEST,
    PER_CHANNEL,
    PER_TOKEN,
)
from mav.pipeline.ops.tensor_storage import to_stored

_LEAST_SCALE: Final = 1e-30
"""Of a token or channel that is zero throughout."""


def quantize(path: str, states: Tensor, storage: StatesStorage) -> dict[str, NDArray[Any]]:
    """Return codes and scales of the states of a whole block, by path, as stored.

    Args:
        path: Path of the array.
        states: Any float type, [N, …, W].
        storage: `int8` or `fp8`.
    """
    scaled = states.float()
    arrays = {}
    if storage == "int8":
        channel_W = scaled.square().mean(0).sqrt().clamp_min(_LEAST_SCALE)
        scaled = scaled / channel_W
        arrays[f"{path}{PER_CHANNEL}"] = to_stored(channel_W[None])
    token_N1 = (scaled.abs().amax(-1, keepdim=True) / LARGEST[storage]).clamp_min(_LEAST_SCALE)
    scaled = scaled / token_N1
    if storage == "int8":
        codes = scaled.round_().to(torch.int8)
    else:
        codes = scaled.to(torch.float8_e4m3fn).view(torch.uint8)
    return arrays | {path: to_stored(codes), f"{path}{PER_TOKEN}": to_stored(token_N1[..., 0])}
