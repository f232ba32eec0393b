"""A cache that is written is read back bit for bit, by MAV and by plain Zarr."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mav.cache_schema.arrays import layouts
from mav.cache_schema.choices import Compression, StatesStorage
from mav.cache_schema.commits import size_problem
from mav.cache_schema.encoding.dtypes import STORED_AS, to_float32
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import CommitRecord, commit_key, read_block_record
from mav.cache_schema.shards import shard_bytes
from mav.cache_schema.storage.base import Bytes, ETag
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    SEVERAL_CHUNKS,
    Rows,
    all_same_bits,
    begin,
    block_rows,
    draft,
    held,
    leftovers,
    of_kind,
    pair_columns,
    read_all,
    same_bits,
    stored_objects,
    unembedding,
    write,
    write_one,
)
from tests.support.profiles import examples

COMPRESSIONS = get_args(Compression)
STORAGES = get_args(StatesStorage)


def e4m3(code: int) -> float:
    """The number that an 8-bit float stands for, by its definition (OCP E4M3)."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return np.nan
    significand = mantissa / 8 if exponent == 0 else 1 + mantissa / 8
    return float(sign * np.ldexp(significand, max(exponent, 1) - 7))


E4M3 = np.array([e4m3(code) for code in range(256)], np.float32)


pytestmark = pytest.mark.usefixtures("unflushed_disk")


def require_rows(manifest: Manifest, found: Rows, stored: Rows) -> None:
    """Check that rows were read as they are stored, or as the states that their codes stand for."""
    dtype = manifest.states.dtype
    scales = {path for path in stored if path.endswith("_scale")}
    quantized = {path.removesuffix("_token_scale") for path in scales} & set(stored)
    assert set(found) == set(stored) - scales
    for path in found:
        if path not in quantized:
            assert same_bits(found[path], stored[path]), path
            continue
        codes = stored[path]
        values = E4M3[codes] if manifest.storage.states == "fp8" else codes.astype(np.float32)
        wide = values * stored[f"{path}_token_scale"][..., None]
        if manifest.storage.states == "int8":
            wide *= stored[f"{path}_channel_scale"]
        assert found[path].dtype == STORED_AS[dtype]
        assert np.array_equal(to_float32(found[path], dtype), wide, equal_nan=True), path


@settings(max_examples=examples(0.8))
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9),
    encoding=st.sampled_from(["factored", "dense", "topk"]),
    dtype=st.sampled_from(sorted(STORED_AS)),
    has_bias=st.booleans(),
    hidden=st.integers(1, 9),
    pooled=st.integers(1, 9),
    vocab=st.integers(4, 12),
    block_tokens=st.integers(18, 40),
    compression=st.sampled_from(COMPRESSIONS),
    storage=st.sampled_from(STORAGES),
    chunk_bytes=st.sampled_from([1, 24, 100, 1 << 20]),
    most_chunks=st.integers(1, 3),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[tuple[int, int]],
    chunk_bytes: int,
    most_chunks: int,
    **options: Any,
) -> None:
    root = tmp_path_factory.mktemp("any") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mav.cache_schema.arrays.INNER_CHUNK_BYTES", chunk_bytes)
        patch.setattr("mav.cache_schema.arrays._MOST_CHUNKS", most_chunks)
        manifest, plan = write(root, lengths=tuple(lengths), **options)
        reader = CacheReader(root)
    assert reader.manifest.complete
    assert reader.manifest.to_json() == manifest.to_json() | {"complete": True}
    for name in ("block_start", "response_start", "response_length"):
        assert same_bits(getattr(reader.plan, name), getattr(plan, name))
    columns = pair_columns(plan)
    assert same_bits(reader.pair_id, columns["pair_id"])
    assert same_bits(reader.prompt_id, columns["prompt_id"])
    assert same_bits(reader.read_source_rows(), columns["source_row"])
    assert all_same_bits(reader.read_unembedding(), unembedding(manifest))
    for number in range(plan.blocks):
        block = reader.read_block(number)
        assert (block.number, block.pairs) == (number, plan.pairs_of(number))
        require_rows(manifest, block.rows, block_rows(manifest, plan, number))
        ends = np.cumsum([length for pair in block.pairs for length in plan.response_length[pair]])
        assert block.offsets.tolist() == [0, *ends.tolist()]


def test_offsets_cut_a_block_into_its_answers(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    block = CacheReader(tmp_path / "cache").read_block(0)
    assert block.pairs == range(2)
    assert block.offsets.tolist() == [0, 3, 5, 9, 10]


def plainly(root: Path, path: str) -> zarr.Array[Any]:
    array = zarr.open_group(root, mode="r")[path]
    assert isinstance(array, zarr.Array)
    return array


@pytest.mark.parametrize(
    "options",
    [
        {},
        SEVERAL_CHUNKS,
        {"storage": "int8"},
        {"storage": "fp8"},
        {"encoding": "dense"},
        {"encoding": "topk"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_zarr_reads_the_same(
    tmp_path: Path, compression: str, options: dict[str, Any]
) -> None:
    manifest, plan = write(tmp_path / "cache", compression=compression, has_bias=True, **options)
    arrays = layouts(manifest)
    chunked = arrays["hidden_states"]
    assert chunked.shard[0] // chunked.chunk[0] == (2 if options == SEVERAL_CHUNKS else 1)
    known: Rows = {
        "pairs/response_start": plan.response_start,
        "pairs/response_length": plan.response_length,
        "pairs/block_start": plan.block_start,
        **{f"pairs/{name}": column for name, column in pair_columns(plan).items()},
        **{f"unembedding/{name}": values for name, values in unembedding(manifest).items()},
    }
    assert {*known, *of_kind(manifest, "block")} == set(arrays)
    for path, values in known.items():
        assert same_bits(np.asarray(plainly(tmp_path / "cache", path)[...]), values), path
    for block in range(plan.blocks):
        for path, rows in block_rows(manifest, plan, block).items():
            first = block * arrays[path].shard[0]
            found = plainly(tmp_path / "cache", path)[first : first + len(rows)]
            assert same_bits(np.asarray(found), rows), (path, block)


@pytest.mark.parametrize(
    ("options", "dtype", "stored"),
    [
        ({"dtype": "bfloat16"}, "bfloat16", "uint16"),
        ({"dtype": "float16"}, "float16", "float16"),
        ({"dtype": "float32"}, "float32", "float32"),
        ({"storage": "int8"}, "int8", "int8"),
        ({"storage": "fp8"}, "float8_e4m3fn", "uint8"),
    ],
)
def test_zarr_tells_dimensions_and_element_types(
    tmp_path: Path, options: dict[str, str], dtype: str, stored: str
) -> None:
    write(tmp_path / "cache", **options)
    states = plainly(tmp_path / "cache", "hidden_states")
    assert states.metadata.to_dict()["dimension_names"] == ("token", "layer", "width")
    assert (states.attrs["element_type"], states.dtype.name) == (dtype, stored)
    assert plainly(tmp_path / "cache", "labels").attrs["element_type"] == "int32"


def test_blocks_may_be_written_in_any_order(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        for block in (3, 0, 2, 1):
            write_one(writer, manifest, plan, block)
        writer.complete()
    write(tmp_path / "in order")
    assert all_same_bits(read_all(tmp_path / "cache"), read_all(tmp_path / "in order"))


def test_blocks_of_zeros_are_on_disk_too(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        for block in range(plan.blocks):
            zeros = {k: np.zeros_like(v) for k, v in block_rows(manifest, plan, block).items()}
            writer.write_block(block, len(plan.pairs_of(block)), zeros)
        writer.complete()
    for path, layout in of_kind(manifest, "block").items():
        sizes = [file.stat().st_size for file in stored_objects(tmp_path / "cache", path)]
        assert sizes == [shard_bytes(layout, plan.used_rows(b)) for b in range(plan.blocks)]
        assert min(sizes) > plan.block_tokens * layout.bytes_per_row
    assert not any(
        rows.any() for rows in CacheReader(tmp_path / "cache").read_block(1).rows.values()
    )


def test_zeros_of_plan_and_unembedding_are_on_disk_too(tmp_path: Path) -> None:
    manifest, plan = draft(has_bias=True)
    columns = {name: np.zeros_like(values) for name, values in pair_columns(plan).items()}
    tied = {name: np.zeros_like(values) for name, values in unembedding(manifest).items()}
    with held(tmp_path / "cache") as (objects, run):
        CacheWriter.create(objects, run, manifest, plan, columns, tied)
    for path in ("pairs/pair_id", "pairs/source_row", "unembedding/weight", "unembedding/bias"):
        (file,) = stored_objects(tmp_path / "cache", path)
        assert file.stat().st_size > layouts(manifest)[path].shape[0]


def test_commit_records_name_every_shard_of_their_block(tmp_path: Path) -> None:
    manifest, plan = write(tmp_path / "cache")
    objects = open_object_store(tmp_path / "cache")
    sizes = objects.sizes()
    named = []
    for block in range(plan.blocks):
        record = read_block_record(objects, block, manifest.identity())
        assert isinstance(record, CommitRecord)
        assert (record.pairs, record.tokens) == (len(plan.pairs_of(block)), plan.used_rows(block))
        assert not any(size_problem(item, sizes.get(key)) for key, item in record.objects.items())
        named += list(record.objects)
    paths = of_kind(manifest, "block")
    files = [file for path in paths for file in stored_objects(tmp_path / "cache", path)]
    assert sorted(named) == sorted(str(file.relative_to(tmp_path / "cache")) for file in files)


def test_the_content_of_a_block_has_one_digest_however_it_is_stored(tmp_path: Path) -> None:
    digests = set()
    for compression in COMPRESSIONS:
        manifest, _ = write(tmp_path / compression, compression=compression)
        objects = open_object_store(tmp_path / compression)
        record = read_block_record(objects, 2, manifest.identity())
        assert isinstance(record, CommitRecord)
        digests.add(record.content)
    assert len(digests) == 1


def test_a_block_is_claimed_before_its_shards_and_committed_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        order: list[tuple[str, ETag | None]] = []
        versions: list[ETag] = []
        write_object = objects.write

        def recorded(key: str, data: Bytes, expected: ETag | None) -> ETag:
            version = write_object(key, data, expected)
            if key != LOCK:  # it beats at any time
                order.append((key, expected))
                versions.append(version)
            return version

        monkeypatch.setattr(objects, "write", recorded)
        write_one(writer, manifest, plan, 1)
    shards = {"hidden_states/c.1.0.0", "final_hidden_state/c.1.0", "labels/c.1"}
    assert order[0] == (commit_key(1), None)
    assert {key for key, _ in order[1:-1]} == shards
    assert order[-1] == (commit_key(1), versions[0])
    assert len(order) == len(shards) + 2


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    assert leftovers(tmp_path) == []


def test_the_lock_is_gone_when_the_run_has_ended(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    assert LOCK not in open_object_store(tmp_path / "cache").sizes()


def test_stored_bytes_is_what_the_files_take(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert CacheReader(tmp_path / "cache").stored_bytes() == sum(sizes)
