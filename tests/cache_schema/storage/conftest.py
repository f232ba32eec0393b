"""A folder of objects."""

from pathlib import Path

import pytest

from mav.cache_schema.storage.local import LocalObjectStore


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "place")
