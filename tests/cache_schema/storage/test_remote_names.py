"""Names of places in a real store: what is written under one name is there and nowhere else."""

from collections.abc import Iterator

import obstore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import S3Store

from mav.cache_schema.storage.base import ConflictError
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.addresses import SEGMENTS
from tests.support.caches.s3_server import S3Server, s3_in_environment
from tests.support.profiles import examples

NAMES = (
    "exp#1/c",
    "exp#2/c",
    "exp",
    "a b",
    "a%20b",
    "a+b",
    "a%2Bb",
    "a%2Fb",
    "a?versionId=1&x=y;z",
    "a@b:c",
    "é",
    "e\u0301",
    "漢字/😀",
    "*",
    "~",
    "quote'\"<>",
    "a^b`c{d}[e]|<f>",
    "%",
    "%zz",
)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_in_environment() as running:
        yield running


def in_bucket(server: S3Server) -> set[str]:
    whole = S3Store(server.bucket, client_options={"allow_http": True})
    return {item["path"] for page in obstore.list(whole) for item in page}


def test_each_name_is_a_place_of_its_own(server: S3Server) -> None:
    for number, name in enumerate(NAMES):
        objects = open_object_store(server.url(f"names/{name}"))
        assert objects.location == server.url(f"names/{name}")
        objects.write("c/0", str(number).encode(), None)
        with pytest.raises(ConflictError):
            objects.write("c/0", b"again", None)
    for number, name in enumerate(NAMES):
        # As another process would, which knows the printed name alone.
        objects = open_object_store(open_object_store(server.url(f"names/{name}")).location)
        assert objects.read("c/0").tobytes() == str(number).encode()
        assert objects.sizes() == {"c/0": len(str(number))}
    assert {f"names/{name}/c/0" for name in NAMES} <= in_bucket(server)


@settings(max_examples=examples(0.5), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join))
def test_any_name_is_written_listed_read_and_removed(server: S3Server, name: str) -> None:
    objects = open_object_store(server.url(f"any/{name}"))
    version = objects.write("k", b"1", None)
    assert objects.version("k") == version
    objects.write("k", b"22", version)
    assert objects.sizes() == {"k": 2}
    assert f"any/{name}/k" in in_bucket(server)
    objects.delete("k")
    assert objects.sizes() == {}
