"""A tiny base, rows to read, and an extraction of them that was not run yet."""

from pathlib import Path

import pytest

from mav.pipeline.base.model import BaseModel
from tests.support.caches.dry_runs import Asked
from tests.support.models.tiny import tiny_base, tiny_extraction, write_rows


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", 24)


@pytest.fixture
def asked(base: BaseModel, data: Path, tmp_path: Path) -> Asked:
    options = tiny_extraction(data, tmp_path / "deep" / "cache")
    return Asked(base=base, options=options)
