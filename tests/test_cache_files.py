"""A cache on disk: read back as written, complete or refused, whatever happens to its files."""

import asyncio
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.core.buffer import Buffer

from cache_schema.arrays import ArrayLayout, layouts
from cache_schema.dtypes import STORED_AS, itemsize, to_float32
from cache_schema.errors import CacheError, CacheIncompleteError, MismatchError
from cache_schema.manifest import Manifest
from cache_schema.plan import BlockPlan, plan_blocks
from cache_schema.reader import CacheReader
from cache_schema.store import commit_path, layout_path, read_commits, shard_problem, write_durably
from cache_schema.writer import CacheWriter
from tests.test_manifest import llama_7b
from tests.tiny import make_cache

LENGTHS = ((3, 2), (4, 1), (1, 1), (7, 3), (2, 6))
Rows = dict[str, NDArray[Any]]


def draft(
    *,
    lengths: tuple[tuple[int, int], ...] = LENGTHS,
    encoding: str = "factored",
    dtype: str = "bfloat16",
    has_bias: bool = False,
    hidden: int = 8,
    pooled: int = 4,
    vocab: int = 11,
    block_tokens: int = 10,
) -> tuple[Manifest, BlockPlan]:
    """The manifest, not yet complete, and the plan of a cache of a few tokens."""
    plan = plan_blocks(np.array(lengths, np.int32), block_tokens)
    value = llama_7b(complete=False).to_json()
    value["base"] |= {"hidden_size": hidden, "vocab_size": vocab}
    value["states"] |= {
        "pooled_size": pooled,
        "stored_width": min(hidden, pooled),
        "dtype": dtype,
    }
    value["logits"] |= {
        "encoding": encoding,
        "has_bias": has_bias,
        "top_k": 3 if encoding == "topk" else None,
    }
    value["data"] |= {"rows": len(lengths), "pairs": len(lengths), "dropped": {}}
    value["plan"] |= {"block_tokens": block_tokens, "blocks": plan.blocks, "tokens": plan.tokens}
    return Manifest.from_json(value, "draft"), plan


def random_values(dtype: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Any bits at all, NaN and infinity among them."""
    generator = np.random.default_rng(seed)
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    return np.frombuffer(generator.bytes(size), dtype).reshape(shape)


def pair_columns(plan: BlockPlan) -> Rows:
    return {
        "pair_id": random_values("uint64", (plan.pairs,), 1),
        "prompt_id": random_values("uint64", (plan.pairs,), 2),
        "source_row": np.arange(plan.pairs)[::-1].astype(np.int64),
    }


def of_kind(manifest: Manifest, kind: str) -> dict[str, ArrayLayout]:
    return {path: lay for path, lay in layouts(manifest).items() if lay.spec.kind == kind}


def unembedding(manifest: Manifest) -> Rows:
    return {
        path.removeprefix("unembedding/"): random_values(lay.dtype, lay.shape, 3)
        for path, lay in of_kind(manifest, "unembedding").items()
    }


def block_rows(manifest: Manifest, plan: BlockPlan, block: int) -> Rows:
    return {
        path: random_values(lay.dtype, (plan.used_rows(block), *lay.shape[1:]), 10 + block)
        for path, lay in of_kind(manifest, "block").items()
    }


def begin(root: Path, manifest: Manifest, plan: BlockPlan) -> CacheWriter:
    return CacheWriter.create(root, manifest, plan, pair_columns(plan), unembedding(manifest))


def finish(writer: CacheWriter, manifest: Manifest, plan: BlockPlan) -> None:
    for block in range(plan.blocks):
        if block not in writer.committed:
            writer.write_block(block, len(plan.pairs_of(block)), block_rows(manifest, plan, block))
    writer.complete()


def write(root: Path, **options: Any) -> tuple[Manifest, BlockPlan]:
    manifest, plan = draft(**options)
    finish(begin(root, manifest, plan), manifest, plan)
    return manifest, plan


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Flushing each of thousands of tiny files takes most of a minute on some disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache_schema.store.os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bfloat16 factored cache of random bits, four blocks; read only."""
    root = tmp_path_factory.mktemp("original") / "cache"
    write(root, has_bias=True)
    return root


@pytest.fixture
def cache(original: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(original, tmp_path / "cache")


def read_all(root: Path) -> None:
    """Read everything that a training run would."""
    reader = CacheReader(root)
    for block in range(reader.plan.blocks):
        reader.read_block(block)
    reader.read_unembedding()


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def stored_objects(root: Path, path: str) -> list[Path]:
    return sorted(file for file in (root / path / "c").rglob("*") if file.is_file())


# Writing and reading back


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9),
    encoding=st.sampled_from(["factored", "dense", "topk"]),
    dtype=st.sampled_from(sorted(STORED_AS)),
    has_bias=st.booleans(),
    hidden=st.integers(1, 9),
    pooled=st.integers(1, 9),
    vocab=st.integers(4, 12),
    block_tokens=st.integers(18, 40),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[tuple[int, int]],
    **options: Any,
) -> None:
    root = tmp_path_factory.mktemp("any") / "cache"
    manifest, plan = write(root, lengths=tuple(lengths), **options)
    reader = CacheReader(root)
    assert reader.manifest.complete
    assert reader.manifest.to_json() == manifest.to_json() | {"complete": True}
    for name in ("block_start", "response_start", "response_length"):
        assert same_bits(getattr(reader.plan, name), getattr(plan, name))
    assert same_bits(reader.pair_id, pair_columns(plan)["pair_id"])
    assert same_bits(reader.prompt_id, pair_columns(plan)["prompt_id"])
    stored = reader.read_unembedding()
    assert set(stored) == set(unembedding(manifest))
    assert all(same_bits(stored[name], values) for name, values in unembedding(manifest).items())
    for number in range(plan.blocks):
        block, written = reader.read_block(number), block_rows(manifest, plan, number)
        assert (block.number, block.pairs) == (number, plan.pairs_of(number))
        assert set(block.rows) == set(written)
        assert all(same_bits(block.rows[path], written[path]) for path in written)
        ends = np.cumsum([length for pair in block.pairs for length in plan.response_length[pair]])
        assert block.offsets.tolist() == [0, *ends.tolist()]


def test_offsets_cut_a_block_into_its_answers(cache: Path) -> None:
    block = CacheReader(cache).read_block(1)
    assert block.pairs == range(2, 3)
    assert block.offsets.tolist() == [0, 1, 2]


def test_plain_zarr_reads_the_same(cache: Path) -> None:
    group = zarr.open_group(cache, mode="r")
    states = group["hidden_states"]
    assert isinstance(states, zarr.Array)
    assert states.metadata.to_dict()["dimension_names"] == ("token", "layer", "width")
    assert states.attrs["element_type"] == "bfloat16"
    block = CacheReader(cache).read_block(0)
    assert same_bits(np.asarray(states[:10]), block.rows["hidden_states"])


def test_blocks_may_be_written_in_any_order(tmp_path: Path) -> None:
    manifest, plan = draft()
    writer = begin(tmp_path / "cache", manifest, plan)
    for block in (3, 0, 2, 1):
        writer.write_block(block, 1, block_rows(manifest, plan, block))
    writer.complete()
    write(tmp_path / "in order")
    for number in range(plan.blocks):
        there = CacheReader(tmp_path / "cache").read_block(number).rows
        here = CacheReader(tmp_path / "in order").read_block(number).rows
        assert all(same_bits(there[path], here[path]) for path in here)


def test_blocks_of_zeros_are_on_disk_too(tmp_path: Path) -> None:
    manifest, plan = draft()
    writer = begin(tmp_path / "cache", manifest, plan)
    for block in range(plan.blocks):
        zeros = {k: np.zeros_like(v) for k, v in block_rows(manifest, plan, block).items()}
        writer.write_block(block, len(plan.pairs_of(block)), zeros)
    writer.complete()
    for path, layout in of_kind(manifest, "block").items():
        files = stored_objects(tmp_path / "cache", path)
        assert len(files) == plan.blocks
        full = layout.shard[0] * layout.bytes_per_row
        assert all(file.stat().st_size > full for file in files)
    read_all(tmp_path / "cache")


def test_zeros_of_plan_and_unembedding_are_on_disk_too(tmp_path: Path) -> None:
    manifest, plan = draft(has_bias=True)
    columns = {name: np.zeros_like(values) for name, values in pair_columns(plan).items()}
    tied = {name: np.zeros_like(values) for name, values in unembedding(manifest).items()}
    CacheWriter.create(tmp_path / "cache", manifest, plan, columns, tied)
    for path in ("pairs/pair_id", "pairs/source_row", "unembedding/weight", "unembedding/bias"):
        assert stored_objects(tmp_path / "cache", path)


def test_commit_records_hold_size_and_digest_of_every_shard(cache: Path) -> None:
    manifest, plan = draft(has_bias=True)
    records = list(read_commits(cache))
    assert [record.block for record in records] == list(range(plan.blocks))
    assert sum(record.pairs for record in records) == plan.pairs
    assert sum(record.tokens for record in records) == plan.tokens
    keys = {key for record in records for key in record.shards}
    files = [file for path in of_kind(manifest, "block") for file in stored_objects(cache, path)]
    assert keys == {str(file.relative_to(cache)) for file in files}
    assert not any(shard_problem(cache, k, s) for r in records for k, s in r.shards.items())


def test_a_file_is_on_disk_before_it_has_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append(("sync folder" if folder else "sync file", (tmp_path / "x").exists()))

    monkeypatch.setattr("cache_schema.store.os.fsync", sync)
    write_durably(tmp_path / "x", b"content")
    assert steps == [("sync file", False), ("sync folder", True)]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_a_commit_record_comes_after_all_shards_of_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plan = draft()
    writer = begin(tmp_path / "cache", manifest, plan)
    blocks = len(of_kind(manifest, "block"))
    order = []
    rename = Path.replace

    def replace(temporary: Path, path: Path) -> Path:
        order.append(path.parent.name)
        return rename(temporary, path)

    monkeypatch.setattr(Path, "replace", replace)
    writer.write_block(1, 1, block_rows(manifest, plan, 1))
    assert (len(order), order.index("commits")) == (blocks + 1, blocks)


def test_no_temporary_file_is_left(cache: Path) -> None:
    assert leftovers(cache.parent) == []


def test_stored_bytes_is_what_the_files_take(cache: Path) -> None:
    sizes = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
    assert CacheReader(cache).stored_bytes() == sum(sizes)


# Element types


def test_bfloat16_bits_widen_to_what_torch_has() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    assert np.array_equal(to_float32(bits, "bfloat16"), expected, equal_nan=True)
    assert to_float32(bits.reshape(16, -1), "bfloat16").shape == (16, 4096)


def test_float16_widens_to_what_torch_has() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    expected = torch.from_numpy(values).float().numpy()
    assert np.array_equal(to_float32(values, "float16"), expected, equal_nan=True)


def test_float32_stays_as_it_is() -> None:
    values = np.array([0.1, -0.0, np.inf, np.nan], np.float32)
    assert same_bits(to_float32(values, "float32"), values)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_itemsize(dtype: str, size: int) -> None:
    assert itemsize(dtype) == size


# Damage


@pytest.mark.parametrize(
    "path",
    [
        "hidden_states",
        "final_hidden_state",
        "labels",
        "base_logprobs",
        "pairs/block_start",
        "pairs/response_start",
        "pairs/response_length",
        "pairs/pair_id",
        "pairs/prompt_id",
        "unembedding/weight",
        "unembedding/bias",
    ],
)
def test_any_flipped_bit_is_an_error_when_read(cache: Path, path: str) -> None:
    file = stored_objects(cache, path)[0]
    whole = file.read_bytes()
    for place in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 5, len(whole) - 1}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(CacheError, match=path):
            read_all(cache)
    file.write_bytes(whole)
    read_all(cache)


def test_a_block_without_damage_can_still_be_read(cache: Path) -> None:
    file = stored_objects(cache, "hidden_states")[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    reader = CacheReader(cache)
    reader.read_block(0)
    with pytest.raises(CacheError, match="hidden_states, rows 10 to 12: damaged"):
        reader.read_block(1)


def _remove(file: Path) -> None:
    file.unlink()


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = [_remove, _empty, _truncate]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("path", ["hidden_states", "labels", "base_logprobs"])
def test_lost_shards_are_found_when_opened(
    cache: Path, path: str, damage: Callable[[Path], None]
) -> None:
    lost = stored_objects(cache, path)[-1]
    damage(lost)
    with pytest.raises(CacheError) as caught:
        CacheReader(cache)
    assert str(lost.relative_to(cache)) in str(caught.value)
    assert "mav extract" in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "path",
    [
        "pairs/block_start",
        "pairs/response_start",
        "pairs/response_length",
        "pairs/pair_id",
        "pairs/prompt_id",
        "unembedding/weight",
        "unembedding/bias",
    ],
)
def test_lost_plan_or_unembedding_is_never_read_as_zeros(
    cache: Path, path: str, damage: Callable[[Path], None]
) -> None:
    damage(stored_objects(cache, path)[0])
    with pytest.raises(CacheError, match=path):
        read_all(cache)


def test_every_lost_shard_is_named_up_to_ten(tmp_path: Path) -> None:
    write(tmp_path / "cache", lengths=((5, 5),) * 13)
    for file in stored_objects(tmp_path / "cache", "labels"):
        file.unlink()
    with pytest.raises(CacheError) as caught:
        CacheReader(tmp_path / "cache")
    assert "13 damaged shards" in str(caught.value)
    assert str(caught.value).count("labels/c/") == 10
    assert "and 3 more" in str(caught.value)


@pytest.mark.parametrize("name", ["labels/zarr.json", "pairs/pair_id/zarr.json"])
@pytest.mark.parametrize("damage", [_remove, _empty])
def test_a_lost_array_description_is_an_error(
    cache: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(cache / name)
    with pytest.raises(CacheError, match=name.removesuffix("/zarr.json")):
        read_all(cache)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"zarr_format": 3, "node_type": "array"}', "\xff"]
)
def test_a_damaged_root_is_an_error(cache: Path, text: str) -> None:
    (cache / "zarr.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheError, match=r"zarr\.json cannot be read"):
        CacheReader(cache)


def test_a_zarr_group_of_something_else_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other", attributes={"made by": "someone else"})
    with pytest.raises(CacheError, match="not a MAV cache"):
        CacheReader(tmp_path / "other")


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"not a MAV cache \(it has no zarr\.json\)"):
        CacheReader(tmp_path)


def test_a_cache_that_is_not_there_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no such cache\. `mav extract --output"):
        CacheReader(tmp_path / "nowhere")


# Incomplete caches


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_an_incomplete_cache_is_refused_with_the_remedy(tmp_path: Path, blocks: int) -> None:
    manifest, plan = draft()
    writer = begin(tmp_path / "cache", manifest, plan)
    for block in range(blocks):
        writer.write_block(block, 1, block_rows(manifest, plan, block))
    with pytest.raises(CacheIncompleteError) as caught:
        CacheReader(tmp_path / "cache")
    assert f"{blocks} of {plan.blocks} blocks are written" in str(caught.value)
    assert "Run the same `mav extract` command again" in str(caught.value)


def test_all_blocks_without_the_mark_of_completion_are_incomplete(tmp_path: Path) -> None:
    manifest, plan = draft()
    writer = begin(tmp_path / "cache", manifest, plan)
    for block in range(plan.blocks):
        writer.write_block(block, 1, block_rows(manifest, plan, block))
    with pytest.raises(CacheIncompleteError):
        CacheReader(tmp_path / "cache")
    CacheWriter(tmp_path / "cache").complete()
    read_all(tmp_path / "cache")


def test_a_lost_commit_makes_a_complete_cache_incomplete(cache: Path) -> None:
    commit_path(cache, 1).unlink()
    with pytest.raises(CacheIncompleteError, match="3 of 4 blocks"):
        CacheReader(cache)
    assert CacheWriter(cache).committed == {0, 2, 3}


def test_a_shard_without_a_commit_is_not_trusted(cache: Path) -> None:
    manifest, plan = draft(has_bias=True)
    whole = stored_objects(cache, "labels")[1].read_bytes()
    commit_path(cache, 1).unlink()
    stored_objects(cache, "labels")[1].write_bytes(b"half")
    finish(CacheWriter(cache), manifest, plan)
    assert stored_objects(cache, "labels")[1].read_bytes() == whole
    read_all(cache)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_commit_whose_shard_is_gone_is_computed_again(
    cache: Path, damage: Callable[[Path], None]
) -> None:
    manifest, plan = draft(has_bias=True)
    lost = stored_objects(cache, "hidden_states")[2]
    whole = lost.read_bytes()
    damage(lost)
    writer = CacheWriter(cache)
    assert writer.committed == {0, 1, 3}
    assert not commit_path(cache, 2).exists()
    finish(writer, manifest, plan)
    assert lost.read_bytes() == whole
    read_all(cache)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"block": 1, "pai',
        "[]",
        "null",
        "{}",
        '{"block": 1, "pairs": 1, "tokens": 2, "shards": []}',
        '{"block": 1, "pairs": 1, "tokens": 2, "shards": {"labels/c/1": {"bytes": 3}}}',
        '{"block": 1, "pairs": 1, "tokens": 2, "shards": {}, "colour": "red"}',
        '{"pairs": 1, "tokens": 2, "shards": {}}',
        "\xff\xfe",
    ],
)
@pytest.mark.parametrize("opened", [CacheReader, CacheWriter])
def test_a_damaged_commit_record_is_named_with_the_remedy(
    cache: Path, opened: Callable[[Path], object], text: str
) -> None:
    record = commit_path(cache, 1)
    record.write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheError) as caught:
        opened(cache)
    assert str(caught.value).startswith(f"{record}: damaged")
    assert "Delete this file and run the extraction command again" in str(caught.value)


def test_a_commit_record_without_shards_proves_nothing(cache: Path) -> None:
    fields = json.loads(commit_path(cache, 1).read_text()) | {"shards": {}}
    commit_path(cache, 1).write_text(json.dumps(fields))
    with pytest.raises(CacheError, match="block 1"):
        CacheReader(cache)
    assert 1 not in CacheWriter(cache).committed


def test_a_commit_record_of_another_block_proves_nothing(cache: Path) -> None:
    shutil.copy(commit_path(cache, 0), commit_path(cache, 1))
    stored_objects(cache, "labels")[1].unlink()
    with pytest.raises(CacheError):
        CacheReader(cache)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_record_of_the_layout_is_named_with_the_remedy(
    cache: Path, damage: Callable[[Path], None]
) -> None:
    damage(layout_path(cache))
    with pytest.raises(CacheError) as caught:
        CacheReader(cache)
    assert str(layout_path(cache)) in str(caught.value)
    assert "remove the cache and extract again" in str(caught.value)


# Going on with a cache


def test_a_cache_goes_on_with_the_same_settings_only(cache: Path) -> None:
    writer = CacheWriter(cache)
    writer.require_same(draft(has_bias=True)[0])
    other = draft(has_bias=True, dtype="float32", pooled=2)[0]
    with pytest.raises(MismatchError) as caught:
        writer.require_same(other)
    message = str(caught.value)
    assert "states.dtype: stored 'bfloat16', asked for 'float32'" in message
    assert "states.pooled_size: stored 4, asked for 2" in message
    assert "another --output" in message


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        ("base", "id", "/elsewhere/llama"),
        ("base", "revision", None),
        ("base", "gguf_file", "x.gguf"),
        ("data", "id", "copy.jsonl"),
        ("data", "split", "test"),
        ("data", "data_dir", None),
        ("data", "limit", 5),
    ],
)
def test_names_of_the_same_contents_may_differ(
    cache: Path, record: str, field: str, value: str | int | None
) -> None:
    asked = draft(has_bias=True)[0].to_json()
    asked[record][field] = value
    CacheWriter(cache).require_same(Manifest.from_json(asked, "asked"))


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
def test_other_contents_are_refused(cache: Path, record: str, field: str) -> None:
    asked = draft(has_bias=True)[0].to_json()
    asked[record][field] = "other"
    with pytest.raises(MismatchError, match=f"{record}.{field}: stored .*, asked for 'other'"):
        CacheWriter(cache).require_same(Manifest.from_json(asked, "asked"))


# Creating


def test_creation_makes_missing_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "cache")
    read_all(tmp_path / "a" / "b" / "cache")


def test_an_empty_folder_becomes_a_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    write(tmp_path / "cache")
    read_all(tmp_path / "cache")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    manifest, plan = draft()
    with pytest.raises(CacheError, match="exists and is not a MAV cache"):
        begin(tmp_path / "thesis", manifest, plan)
    assert sorted(tmp_path.rglob("*")) == [
        tmp_path / "thesis",
        tmp_path / "thesis" / "chapter.txt",
    ]


def test_a_file_in_the_way_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    manifest, plan = draft()
    with pytest.raises(CacheError, match="exists and is not a MAV cache"):
        begin(tmp_path / "cache", manifest, plan)
    assert (tmp_path / "cache").read_text() == "a file"


# A full disk


class FullDisk:
    """Makes the n-th and all later file writes fail, as a full disk does; folders still sync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, works: int | None) -> None:
        self.written = 0
        self._works = works
        monkeypatch.setattr("cache_schema.store.os.fsync", self)

    def __call__(self, descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            if self.written == self._works:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.written += 1


def test_creation_is_all_or_nothing_wherever_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plan = draft(has_bias=True)
    for works in count():
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, works)
            try:
                begin(tmp_path / "cache", manifest, plan)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            else:
                break
        assert list(tmp_path.iterdir()) == []
    # Every array has a description and the plan has its values: the loop was no empty one.
    assert disk.written >= len(layouts(manifest)) + 8
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]
    assert CacheWriter(tmp_path / "cache").committed == set()


def test_creation_leaves_nothing_though_zarr_still_writes_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Zarr saves several objects at once and does not wait for the others when one fails.
    in_time = zarr.storage.LocalStore.set_if_not_exists

    async def late(self: zarr.storage.LocalStore, key: str, value: Buffer) -> None:
        await asyncio.sleep(0.05)
        await in_time(self, key, value)

    monkeypatch.setattr(zarr.storage.LocalStore, "set_if_not_exists", late)
    FullDisk(monkeypatch, 2)
    with pytest.raises(OSError, match="No space left"):
        begin(tmp_path / "cache", *draft())
    time.sleep(0.2)
    assert list(tmp_path.iterdir()) == []


def all_arrays(root: Path) -> Rows:
    manifest = CacheReader(root).manifest
    return {path: np.asarray(zarr.open_array(root / path)[...]) for path in layouts(manifest)}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A cache of a tiny Llama, and the number of files that writing it took."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, None)
        root = make_cache(tmp_path_factory.mktemp("whole"), pairs=12)
    return root, disk.written


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_extraction_on_a_full_disk_commits_nothing_half_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Path, int],
    share: float,
) -> None:
    reference, writes = uninterrupted
    root = tmp_path / "cut" / "cache"
    with monkeypatch.context() as patch:
        FullDisk(patch, round(share * (writes - 1)))
        with pytest.raises(OSError, match="No space left") as caught:
            make_cache(tmp_path / "cut", pairs=12)
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(tmp_path / "cut") == []
    if root.exists():
        with pytest.raises(CacheIncompleteError):
            CacheReader(root)
        records = list(read_commits(root))
        assert not any(shard_problem(root, k, s) for r in records for k, s in r.shards.items())
        stored = sum(len(stored_objects(root, path)) for path in ("labels", "base_logprobs"))
        assert 2 * len(records) <= stored
    make_cache(tmp_path / "cut", pairs=12)
    assert leftovers(tmp_path / "cut") == []
    read_all(root)
    expected, got = all_arrays(reference), all_arrays(root)
    assert set(got) == set(expected)
    assert all(same_bits(got[name], expected[name]) for name in expected)


def test_the_block_that_did_not_fit_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plan = draft()
    writer = begin(tmp_path / "cache", manifest, plan)
    writer.write_block(0, 2, block_rows(manifest, plan, 0))
    shards = len(of_kind(manifest, "block"))
    for works in range(shards + 1):
        with monkeypatch.context() as patch:
            FullDisk(patch, works)
            with pytest.raises(OSError, match="No space left"):
                writer.write_block(1, 1, block_rows(manifest, plan, 1))
        assert writer.committed == {0}
        assert [record.block for record in read_commits(tmp_path / "cache")] == [0]
        assert leftovers(tmp_path) == []
    finish(writer, manifest, plan)
    read_all(tmp_path / "cache")
