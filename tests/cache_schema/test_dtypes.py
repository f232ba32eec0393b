"""Element types: what the stored bits of each stand for."""

import numpy as np
import pytest

from mav.cache_schema.encoding.dtypes import itemsize, to_float32
from tests.support.caches.written_caches import same_bits


def test_float32_stays_as_it_is() -> None:
    values = np.array([0.1, -0.0, np.inf, np.nan], np.float32)
    assert same_bits(to_float32(values, "float32"), values)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_itemsize(dtype: str, size: int) -> None:
    assert itemsize(dtype) == size
