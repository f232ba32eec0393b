"""A tiny base, rows to read, and an extraction of them that was not run yet."""

from pathlib import Path

import pytest

from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from tests.support.dry_runs import Asked
from tests.support.tiny import HIDDEN, tiny_base, write_rows


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", 24)


@pytest.fixture
def asked(base: BaseModel, data: Path, tmp_path: Path) -> Asked:
    options = ExtractOptions(
        base_model="tiny",
        data=DataSource(id=str(data)),
        output=tmp_path / "deep" / "cache",
        dtype="float32",
        storage_dtype="float32",
        device="cpu",
        pooled_size=HIDDEN,
        block_tokens=256,
        max_length=128,
    )
    return Asked(base=base, options=options)
