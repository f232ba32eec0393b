"""What several tests of heads need."""

from pathlib import Path

import pytest

from mav.cache_schema import CacheReader, Manifest


@pytest.fixture(scope="session")
def manifest(tiny_cache: Path) -> Manifest:
    """The manifest of `tiny_cache`."""
    return CacheReader(tiny_cache).manifest
