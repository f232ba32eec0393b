"""Extraction with a base that is spread over devices, or partly left on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.extraction.extract import ExtractReport, extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from tests.support.models.device_maps import MAPS, MODULES, placed
from tests.support.models.tiny import save_base, tiny_base, write_rows

PAIRS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tiny_base(), tmp_path_factory.mktemp("spread") / "base"))


def run(folder: str, root: Path, **options: Any) -> ExtractReport:
    return extract(
        ExtractOptions(
            base_model=folder,
            data=DataSource(id=str(write_rows(root / "pairs.jsonl", PAIRS))),
            output=root / "cache",
            max_length=128,
            **{"pooled_size": 16, "dtype": "float32", "storage_dtype": "float32", **options},
        )
    )


@pytest.fixture(scope="module")
def want(folder: str, tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    root = tmp_path_factory.mktemp("whole")
    run(folder, root, device="cpu")
    return CacheReader(root / "cache")


def assert_same(root: Path, want: CacheReader, tolerance: float = 1e-5) -> None:
    got = CacheReader(root / "cache")
    for path, values in want.read_unembedding().items():
        assert np.array_equal(got.read_unembedding()[path], values)
    rows = got.read_block(0).rows
    for path, values in want.read_block(0).rows.items():
        np.testing.assert_allclose(rows[path], values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("logits", ["factored", "topk"])
def test_where_the_base_lies_changes_nothing(
    folder: str, want: CacheReader, tmp_path: Path, name: str, logits: str
) -> None:
    report = run(folder, tmp_path, device_map=MAPS[name], logits=logits, top_k=4)
    assert report.packing == "packed"
    if logits == "factored":
        assert_same(tmp_path, want)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "device_map",
    [None, placed("cuda:0", *MODULES[:4]), placed("cuda:0", *MODULES[4:])],
)
def test_on_an_accelerator_or_partly(
    folder: str, want: CacheReader, tmp_path: Path, device_map: dict[str, str] | None
) -> None:
    report = run(folder, tmp_path, device="cuda", device_map=device_map)
    assert report.packing == "packed"
    assert_same(tmp_path, want, tolerance=1e-3)


@pytest.mark.gpu
def test_in_bfloat16_the_kernel_for_texts_of_many_lengths_is_used(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mav.pipeline.base import packed_attention

    calls: list[int] = []
    varlen = packed_attention._varlen

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return varlen(*arguments)

    monkeypatch.setattr(packed_attention, "_varlen", counted)
    assert run(folder, tmp_path, device="cuda", dtype="bfloat16").packing == "packed"
    assert calls


def test_several_processes_of_a_machine_do_not_spread_over_the_same_devices(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="device_map: got 'auto' with 2 processes on this"):
        run(folder, tmp_path, device_map="auto")
