"""Records of a cache about its own objects: read back as written, and believed only when whole."""

import dataclasses
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mav.cache_schema.arrays import shard_key
from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum
from mav.cache_schema.commits import (
    Commits,
    Problem,
    commit_problems,
    lost_blocks,
    object_problems,
    read_commits,
    size_problem,
)
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.records import (
    STATIC_RECORD,
    ClaimRecord,
    CommitRecord,
    ObjectRecord,
    Record,
    StaticObjectsRecord,
    commit_key,
    content_digest,
    decode_record,
    encode_record,
    object_record,
    read_block_record,
    read_static_record,
)
from mav.cache_schema.shards import encode_shard
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.memory_objects import MemoryObjectStore
from tests.support.caches.written_caches import block_rows, draft, of_kind
from tests.support.running.limits import EVENT

CACHE = draft()[0].identity()
COMMIT = CommitRecord(
    block=1,
    pairs=2,
    tokens=9,
    attempt="a1",
    cache=CACHE,
    content="cc" * 32,
    objects={"labels/c.1": ObjectRecord(bytes=64, sha256="dd" * 32, checksums="ee" * 32)},
)
FIELDS = dataclasses.asdict(COMMIT) | {"record": "commit", "seal": BLANK_CHECKSUM}

texts = st.text(max_size=9)
object_records = st.builds(
    ObjectRecord, bytes=st.integers(0), sha256=texts, checksums=st.none() | texts
)
named = st.dictionaries(texts, object_records, max_size=3)
records = st.one_of(
    st.builds(StaticObjectsRecord, cache=texts, objects=named),
    st.builds(ClaimRecord, block=st.integers(0), attempt=texts),
    st.builds(
        CommitRecord,
        block=st.integers(0),
        pairs=st.integers(0),
        tokens=st.integers(0),
        attempt=texts,
        cache=texts,
        content=texts,
        objects=named,
    ),
)


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return open_object_store(tmp_path / "cache")


def put(objects: ObjectStore, block: int, record: Record | bytes) -> None:
    data = record if isinstance(record, bytes) else encode_record(record)
    objects.write(commit_key(block), data, None)


@given(record=records)
def test_round_trip(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


def test_block_records_have_keys_that_sort_as_their_numbers() -> None:
    assert commit_key(0) == "commits/00000000.json"
    assert commit_key(12_345_678) == "commits/12345678.json"


@pytest.mark.parametrize(
    "fields",
    [
        {"seal": BLANK_CHECKSUM},
        {name: value for name, value in FIELDS.items() if name != "record"},
        {name: value for name, value in FIELDS.items() if name != "attempt"},
        {name: value for name, value in FIELDS.items() if name != "objects"},
        FIELDS | {"colour": "red"},
        FIELDS | {"record": "claim"},
        FIELDS | {"record": "layout"},
        FIELDS | {"record": "shard"},
        FIELDS | {"record": ["commit"]},
        FIELDS | {"objects": []},
        FIELDS | {"objects": {"labels/c.1": 3}},
        FIELDS | {"objects": {"labels/c.1": {"bytes": 3}}},
        {"record": "commit", "inner": {"seal": BLANK_CHECKSUM}},
    ],
)
def test_a_sealed_document_that_is_no_record_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it is not a record"):
        decode_record(add_checksum(fields))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe"])
def test_what_was_never_sealed_is_no_record(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_record(data)


def test_an_object_is_recorded_with_its_size_and_digests() -> None:
    manifest, plan = draft()
    layout = of_kind(manifest, "block")["labels"]
    shard = encode_shard(layout, block_rows(manifest, plan, 0)["labels"])
    data = shard.data.tobytes()
    digest = hashlib.sha256(data).hexdigest()
    expected = ObjectRecord(bytes=len(data), sha256=digest, checksums=shard.checksums)
    assert object_record(data, shard) == expected
    assert object_record(shard.data.data, shard) == expected
    assert object_record(data).checksums is None


# The digest of a block's values


def test_content_is_the_digest_of_paths_and_values() -> None:
    rows = {"b": np.array([[1, 2], [3, 4]], "<u2"), "a": np.array([-1], "<i4")}
    plain = b"a\0\xff\xff\xff\xff" + b"b\0\1\0\2\0\3\0\4\0"
    assert content_digest(rows) == hashlib.sha256(plain).hexdigest()
    assert content_digest(dict(reversed(rows.items()))) == content_digest(rows)


def test_content_does_not_depend_on_how_values_lie_in_memory() -> None:
    values = np.arange(24, dtype="float32").reshape(4, 6)
    assert content_digest({"a": np.asfortranarray(values)}) == content_digest({"a": values})
    assert content_digest({"a": values[::2]}) == content_digest({"a": values[::2].copy()})


def test_other_values_have_another_digest() -> None:
    values = np.zeros(4, "uint16")
    different = [
        {"a": values},
        {"b": values},
        {"a": np.array([0, 0, 1, 0], "uint16")},
        {"a": values[:3]},
        {"a": values, "b": values[:0]},
    ]
    assert len({content_digest(rows) for rows in different}) == len(different)


# Reading them


def test_a_block_record_is_read(objects: ObjectStore) -> None:
    put(objects, 1, COMMIT)
    put(objects, 2, ClaimRecord(block=2, attempt="x"))
    assert read_block_record(objects, 1, CACHE) == COMMIT
    assert read_block_record(objects, 2, CACHE) == ClaimRecord(block=2, attempt="x")
    with pytest.raises(FileNotFoundError):
        read_block_record(objects, 3, CACHE)


@pytest.mark.parametrize("record", [COMMIT, StaticObjectsRecord(cache=CACHE, objects={})])
def test_the_record_of_something_else_is_an_error(objects: ObjectStore, record: Record) -> None:
    put(objects, 5, record)
    with pytest.raises(ValueError, match="it is the record of something else"):
        read_block_record(objects, 5, CACHE)


def test_the_record_of_another_cache_is_an_error(objects: ObjectStore) -> None:
    put(objects, 1, COMMIT)
    with pytest.raises(ValueError, match="it is the record of another cache than the root"):
        read_block_record(objects, 1, "another")
    objects.write(STATIC_RECORD, encode_record(StaticObjectsRecord(cache=CACHE, objects={})), None)
    with pytest.raises(CacheError, match="it is the record of another cache than the root"):
        read_static_record(objects, "another")


def of_blocks(blocks: int) -> Manifest:
    manifest, _ = draft()
    return dataclasses.replace(manifest, plan=dataclasses.replace(manifest.plan, blocks=blocks))


def test_commits_are_told_from_claims_and_damage(objects: ObjectStore) -> None:
    manifest = of_blocks(7)
    cache = manifest.identity()
    put(objects, 0, dataclasses.replace(COMMIT, block=0, cache=cache))
    put(objects, 1, ClaimRecord(block=1, attempt="x"))
    put(objects, 2, b"{")
    put(objects, 3, COMMIT)
    put(objects, 5, dataclasses.replace(COMMIT, block=5, cache=cache))
    put(objects, 6, dataclasses.replace(COMMIT, block=6))
    put(objects, 9, b"beyond the blocks")
    commits = read_commits(objects, manifest, objects.sizes())
    assert sorted(commits.records) == [0, 5]
    assert sorted(commits.damaged) == [2, 3, 6]
    assert str(commits.damaged[2]).startswith("commits/00000002.json: damaged (Expecting")
    assert str(commits.damaged[3]) == (
        "commits/00000003.json: damaged (it is the record of something else)"
    )
    assert "of another cache" in commits.damaged[6].reason


def test_a_commit_that_goes_missing_meanwhile_is_no_commit(objects: ObjectStore) -> None:
    commits = read_commits(objects, of_blocks(2), {commit_key(1): 100})
    assert commits.damaged == {1: Problem("commits/00000001.json", "damaged (missing)", 1)}


def test_many_commits_are_read(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mav.cache_schema.storage.local.os.fsync", lambda _: None)
    manifest = of_blocks(100)
    record = dataclasses.replace(COMMIT, cache=manifest.identity())
    for block in range(100):
        put(objects, block, dataclasses.replace(record, block=block, pairs=block))
    commits = read_commits(objects, manifest, objects.sizes())
    assert [commits.records[block].pairs for block in range(100)] == list(range(100))


def test_object_storage_is_asked_for_many_commits_at_once() -> None:
    manifest = of_blocks(256)
    everyone = threading.Barrier(256, timeout=EVENT)

    class Slow(MemoryObjectStore):
        def read(self, key: str) -> NDArray[np.uint8]:
            everyone.wait()  # for as many others
            return super().read(key)

    objects = Slow("content")
    record = dataclasses.replace(COMMIT, cache=manifest.identity())
    for block in range(256):
        put(objects, block, dataclasses.replace(record, block=block))
    assert len(read_commits(objects, manifest, objects.sizes()).records) == 256


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "missing"),
        (b"", "Expecting value"),
        (encode_record(COMMIT), "it is the record of a block"),
    ],
)
def test_a_layout_that_cannot_be_read_is_named(
    objects: ObjectStore, data: bytes | None, reason: str
) -> None:
    if data is not None:
        objects.write(STATIC_RECORD, data, None)
    with pytest.raises(CacheError) as caught:
        read_static_record(objects, CACHE)
    assert str(caught.value).startswith(f"{objects.location}/{STATIC_RECORD}: damaged ({reason}")
    assert "remove the cache and extract again" in str(caught.value)


def test_a_layout_is_read(objects: ObjectStore) -> None:
    record = StaticObjectsRecord(cache=CACHE, objects=COMMIT.objects)
    objects.write(STATIC_RECORD, encode_record(record), None)
    assert read_static_record(objects, CACHE) == record


# What they say against what is there


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (3, None),
        (2, "2 bytes, expected 3"),
        (0, "0 bytes, expected 3"),
        (None, "missing, expected 3 bytes"),
    ],
)
def test_an_object_that_is_missing_or_of_another_size(
    size: int | None, problem: str | None
) -> None:
    record = ObjectRecord(bytes=3, sha256="", checksums=None)
    assert size_problem(record, size) == problem
    expected = [Problem("x", problem, 5)] if problem else []
    sizes = {} if size is None else {"x": size}
    assert object_problems({"x": record}, sizes, 5) == expected


def test_a_block_that_is_committed_after_the_objects_were_listed_is_not_lost(
    objects: ObjectStore,
) -> None:
    arrays = {"labels": of_kind(draft()[0], "block")["labels"]}
    commits = Commits(records={1: COMMIT}, damaged={})
    assert lost_blocks(objects, commits, arrays, {"labels/c.1": 64}) == {}
    missing = Problem("labels/c.1", "missing, expected 64 bytes", 1)
    assert lost_blocks(objects, commits, arrays, {}) == {1: [missing]}
    objects.write("labels/c.1", bytes(64), None)
    assert lost_blocks(objects, commits, arrays, {}) == {}


def test_a_commit_names_just_the_shards_of_its_block() -> None:
    arrays = of_kind(draft()[0], "block")
    item = ObjectRecord(bytes=3, sha256="", checksums="")
    whole = dataclasses.replace(
        COMMIT, objects={shard_key(layout, 1): item for layout in arrays.values()}
    )
    sizes = dict.fromkeys(whole.objects, 3)
    assert commit_problems(whole, arrays, sizes) == []
    assert commit_problems(whole, arrays, sizes | {"labels/c.1": 2}) == [
        Problem("labels/c.1", "2 bytes, expected 3", 1)
    ]
    fewer = {key: found for key, found in whole.objects.items() if key != "labels/c.1"}
    for named_objects in ({}, fewer, whole.objects | {"other/c.1": item}):
        (problem,) = commit_problems(
            dataclasses.replace(whole, objects=named_objects), arrays, sizes
        )
        assert str(problem).startswith(
            f"commits/00000001.json: it names {len(named_objects)} objects, expected 3: "
        )
