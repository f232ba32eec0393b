"""Going on with a cache: only with the same settings, and only with the blocks it lacks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mav.cache_schema.comparison import require_same
from mav.cache_schema.errors import CacheIncompleteError, MismatchError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import ClaimRecord, commit_key, encode_record, read_block_record
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    LOSSES,
    all_same_bits,
    begin,
    cut,
    draft,
    empty,
    finish,
    go_on,
    held,
    identity,
    leftovers,
    read_all,
    stored_objects,
    write_one,
)

pytestmark = pytest.mark.usefixtures("unflushed_disk")


# Which blocks are missing


def test_an_interrupted_cache_goes_on_where_it_stopped(tmp_path: Path, original: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        assert writer.missing() == [0, 1, 2, 3]
        write_one(writer, manifest, plan, 2)
        write_one(writer, manifest, plan, 0)
        assert writer.missing() == [1, 3]
    assert go_on(tmp_path / "cache") == [1, 3]
    assert all_same_bits(read_all(tmp_path / "cache"), read_all(original))


def test_a_complete_cache_lacks_nothing(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("c.*")}
    assert go_on(cache) == []
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("c.*")} == before


def test_all_blocks_without_the_mark_of_completion(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        for block in range(plan.blocks):
            write_one(writer, manifest, plan, block)
    assert go_on(tmp_path / "cache") == []
    assert CacheReader(tmp_path / "cache").manifest.complete


def test_a_cache_that_lacks_a_block_is_not_marked_complete(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        for block in (0, 1, 3):
            write_one(writer, manifest, plan, block)
        with pytest.raises(CacheIncompleteError, match="3 of 4 blocks"):
            writer.complete()
    assert not CacheWriter(objects, run).manifest.complete


def test_a_block_that_was_only_claimed_is_missing(cache: Path) -> None:
    claim = encode_record(ClaimRecord(block=1, attempt="of a killed writer"))
    (cache / commit_key(1)).write_bytes(claim)
    assert go_on(cache) == [1]
    read_all(cache)


def test_a_shard_without_a_commit_is_not_trusted(cache: Path) -> None:
    shard = stored_objects(cache, "labels")[1]
    whole = shard.read_bytes()
    (cache / commit_key(1)).unlink()
    shard.write_bytes(b"half")
    assert go_on(cache) == [1]
    assert shard.read_bytes() == whole
    read_all(cache)


@pytest.mark.parametrize("damage", LOSSES)
def test_a_commit_whose_shard_is_gone_is_withdrawn(
    cache: Path, original: Path, damage: Callable[[Path], None]
) -> None:
    damage(stored_objects(cache, "hidden_states")[2])
    with held(cache) as (objects, run):
        writer = CacheWriter(objects, run)
        assert writer.missing() == [2]
        assert isinstance(read_block_record(objects, 2, identity(cache)), ClaimRecord)
        assert writer.missing() == [2]
        finish(writer, *draft())
    assert all_same_bits(read_all(cache), read_all(original))


@pytest.mark.parametrize("damage", [empty, cut])
def test_a_damaged_commit_record_is_withdrawn(
    cache: Path, original: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache / commit_key(3))
    assert go_on(cache) == [3]
    assert all_same_bits(read_all(cache), read_all(original))


def test_what_killed_writers_left_is_removed(cache: Path) -> None:
    (cache / "labels" / ".c.1.0123.partial").write_bytes(b"half")
    (cache / ".zarr.json.4567.partial").write_bytes(b"half")
    assert len(leftovers(cache)) == 2
    go_on(cache)
    assert leftovers(cache) == []


def test_what_a_killed_creation_of_another_cache_left_is_removed(
    cache: Path, original: Path
) -> None:
    (cache / "topk_ids").mkdir()
    for key in ("topk_ids/zarr.json", "labels/c.4", "commits/00000004.json"):
        (cache / key).write_text("of another plan")
    (cache / "notes.txt").write_text("of the user")
    assert go_on(cache) == []
    report = verify(open_object_store(cache), full=True)
    assert report.sound
    assert report.unknown == ["notes.txt"]
    assert all_same_bits(read_all(cache), read_all(original))


# With which settings


def test_a_cache_goes_on_with_the_same_settings_only() -> None:
    stored = draft()[0]
    require_same("here", stored, draft()[0])
    other = draft(dtype="float32", pooled=2, compression="zstd")[0]
    with pytest.raises(MismatchError) as caught:
        require_same("here", stored, other)
    message = str(caught.value)
    assert message.startswith("here: this cache was begun with other settings:\n")
    assert "states.dtype: stored 'bfloat16', asked for 'float32'" in message
    assert "states.pooled_size: stored 4, asked for 2" in message
    assert "storage.compression: stored 'none', asked for 'zstd'" in message
    assert "another `output`" in message


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        ("base", "id", "/elsewhere/llama"),
        ("base", "revision", None),
        ("base", "gguf_file", "x.gguf"),
        ("source", "id", "copy.jsonl"),
        ("source", "split", "test"),
        ("source", "data_dir", None),
        ("source", "limit", 5),
        ("created_by", "mav", "7.0"),
        ("checks", "layers", 0.25),
    ],
)
def test_names_of_the_same_contents_may_differ(
    record: str, field: str, value: str | float | None
) -> None:
    asked = draft()[0].to_json()
    owner = asked["data"]["sources"][0] if record == "source" else asked[record]
    assert owner[field] != value
    owner[field] = value
    require_same("here", draft()[0], Manifest.from_json(asked, "asked"))


def test_a_complete_cache_is_the_same_as_one_that_is_asked_for() -> None:
    stored = Manifest.from_json(draft()[0].to_json() | {"complete": True}, "stored")
    require_same("here", stored, draft()[0])


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ("base", "weights_digest"),
        ("base", "tokenizer_digest"),
        ("data", "fingerprint"),
        ("plan", "digest"),
        ("text", "prompt_template"),
    ],
)
def test_other_contents_are_refused(record: str, field: str) -> None:
    asked = draft()[0].to_json()
    asked[record][field] = "other"
    with pytest.raises(MismatchError, match=rf"{record}\.{field}: stored .*, asked for 'other'"):
        require_same("here", draft()[0], Manifest.from_json(asked, "asked"))
