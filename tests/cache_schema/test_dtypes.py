"""Element types: what the stored bits of each stand for."""

import numpy as np
import pytest
import torch

from mav.cache_schema.encoding.dtypes import itemsize, to_float32
from tests.support.written_caches import same_bits


def test_bfloat16_bits_widen_to_what_torch_has() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    assert np.array_equal(to_float32(bits, "bfloat16"), expected, equal_nan=True)
    assert to_float32(bits.reshape(16, -1), "bfloat16").shape == (16, 4096)


def test_float16_widens_to_what_torch_has() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    expected = torch.from_numpy(values).float().numpy()
    assert np.array_equal(to_float32(values, "float16"), expected, equal_nan=True)


def test_float32_stays_as_it_is() -> None:
    values = np.array([0.1, -0.0, np.inf, np.nan], np.float32)
    assert same_bits(to_float32(values, "float32"), values)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_itemsize(dtype: str, size: int) -> None:
    assert itemsize(dtype) == size
