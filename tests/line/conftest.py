"""A server of objects for the tests of remote caches."""

import itertools
from collections.abc import Iterator

import pytest

from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.s3_server import S3Server, s3_in_environment

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server that this process, and what it starts, finds through the environment."""
    with s3_in_environment() as running:
        yield running


@pytest.fixture
def url(server: S3Server) -> str:
    """A place where nothing is."""
    return server.url(f"caches/{next(NUMBERS)}")


@pytest.fixture
def objects(url: str) -> ObjectStore:
    """An empty store on the server."""
    return open_object_store(url)
