"""A server of objects for the tests of remote caches."""

import itertools
import os
from collections.abc import Iterator

import pytest

from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store
from tests.support.s3_server import S3Server, s3_server

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server that this process, and what it starts, finds through the environment."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as running:
        for name in os.environ:
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def url(server: S3Server) -> str:
    """A place where nothing is."""
    return server.url(f"caches/{next(NUMBERS)}")


@pytest.fixture
def objects(url: str) -> ObjectStore:
    """An empty store on the server."""
    return open_object_store(url)
