"""A place for shards, one for a module."""

import pytest

from mav.cache_schema.storage.local import LocalObjectStore


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> LocalObjectStore:
    """A folder that holds one object, which every example replaces."""
    return LocalObjectStore(tmp_path_factory.mktemp("place"))
