"""The format widens stored bits to the numbers torch has for them."""

import numpy as np
import torch

from mav.cache_schema.encoding.dtypes import to_float32


def test_bfloat16_bits_widen_to_what_torch_has() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    assert np.array_equal(to_float32(bits, "bfloat16"), expected, equal_nan=True)
    assert to_float32(bits.reshape(16, -1), "bfloat16").shape == (16, 4096)


def test_float16_widens_to_what_torch_has() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    expected = torch.from_numpy(values).float().numpy()
    assert np.array_equal(to_float32(values, "float16"), expected, equal_nan=True)
