"""Caches of a few tokens and random bits, written on the spot, and ways to look at them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan, plan_blocks
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import COMMITS, STATIC_RECORD, CommitRecord, decode_record
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.lock import run_lock
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.manifests import llama_7b
from tests.support.running.logs import logged_messages

LENGTHS: Final = ((3, 2), (4, 1), (1, 1), (7, 3), (2, 6))
"""Answers of five pairs; in blocks of ten tokens they make four, of 2, 1, 1 and 1 pairs."""

SEVERAL_CHUNKS: Final[dict[str, int]] = {"hidden": 60_000, "pooled": 30_000}
"""Options of `draft` that make rows so wide that a shard of states has two chunks."""

Rows = dict[str, NDArray[Any]]


def draft(
    *,
    lengths: tuple[tuple[int, int], ...] = LENGTHS,
    encoding: str = "factored",
    dtype: str = "bfloat16",
    has_bias: bool = True,
    hidden: int = 8,
    pooled: int = 4,
    vocab: int = 11,
    block_tokens: int = 10,
    compression: str = "none",
    storage: str = "computed",
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
    value["data"]["sources"][0] |= {
        "rows": len(lengths),
        "pairs": len(lengths),
        "dropped": {},
    }
    value["plan"] |= {"block_tokens": block_tokens, "blocks": plan.blocks, "tokens": plan.tokens}
    value["storage"] = {"compression": compression, "states": storage}
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
        "source": np.zeros(plan.pairs, np.uint16),
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
    """The rows of a block as stored; scales are powers of two, which multiply without rounding."""
    found: Rows = {}
    for path, layout in of_kind(manifest, "block").items():
        shape = (layout.rows_in_block(plan.used_rows(block)), *layout.shape[1:])
        if path.endswith("_scale"):
            found[path] = np.ldexp(np.float32(1), random_values("int8", shape, 10 + block) // 32)
        else:
            found[path] = random_values(layout.dtype, shape, 10 + block)
    return found


@contextlib.contextmanager
def lock_at_once(objects: ObjectStore) -> Iterator[str]:
    """Hold the lock of a cache, as `run_lock`, where no other holder needs to be watched."""
    with contextlib.ExitStack() as held:
        with logged_messages() as logged:
            run = held.enter_context(run_lock(objects))
        assert logged == []
        yield run


@contextlib.contextmanager
def held(location: str | Path) -> Iterator[tuple[ObjectStore, str]]:
    """A place and the run that holds its lock."""
    objects = open_object_store(location)
    with lock_at_once(objects) as run:
        yield objects, run


def begin(objects: ObjectStore, run: str, manifest: Manifest, plan: BlockPlan) -> CacheWriter:
    return CacheWriter.create(
        objects, run, manifest, plan, pair_columns(plan), unembedding(manifest)
    )


def write_one(writer: CacheWriter, manifest: Manifest, plan: BlockPlan, block: int) -> None:
    writer.write_block(block, len(plan.pairs_of(block)), block_rows(manifest, plan, block))


def finish(writer: CacheWriter, manifest: Manifest, plan: BlockPlan) -> list[int]:
    """Write the blocks that are missing, mark the cache complete, and tell which they were."""
    missing = writer.missing()
    for block in missing:
        write_one(writer, manifest, plan, block)
    writer.complete()
    return missing


def write(root: str | Path, **options: Any) -> tuple[Manifest, BlockPlan]:
    """Make a complete cache."""
    manifest, plan = draft(**options)
    with held(root) as (objects, run):
        finish(begin(objects, run, manifest, plan), manifest, plan)
    return manifest, plan


def go_on(root: str | Path, **options: Any) -> list[int]:
    """Make a cache complete that another run has begun; tell which blocks it lacked."""
    manifest, plan = draft(**options)
    with held(root) as (objects, run):
        writer = CacheWriter(objects, run)
        writer.restore_static_objects(plan, pair_columns(plan), unembedding(manifest))
        return finish(writer, manifest, plan)


def identity(root: str | Path) -> str:
    """What the records of a cache must be made for."""
    return read_manifest(open_object_store(root)).identity()


def read_all(root: str | Path) -> Rows:
    """Read everything that a training run would: name -> values."""
    reader = CacheReader(root)
    found: Rows = {
        "pair_id": reader.pair_id,
        "prompt_id": reader.prompt_id,
        "source": reader.read_sources(),
        "source_row": reader.read_source_rows(),
        **reader.read_unembedding(),
    }
    for block in range(reader.plan.blocks):
        rows = reader.read_block(block).rows
        found |= {f"{path}, block {block}": values for path, values in rows.items()}
    return found


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def all_same_bits(a: Rows, b: Rows) -> bool:
    return set(a) == set(b) and all(same_bits(a[name], b[name]) for name in a)


def stored_objects(root: Path, path: str) -> list[Path]:
    """The files of an array, in order of their number."""
    return sorted((root / path).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))


def leftovers(folder: Path) -> list[Path]:
    """Files that a killed writer would have left half-written."""
    return [path for path in folder.rglob(".*") if path.name != ".mutex"]


@contextlib.contextmanager
def quick_disk() -> Iterator[None]:
    """Flush nothing: doing so for thousands of tiny files takes most of a minute on some disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mav.cache_schema.storage.local.os.fsync", lambda _: None)
        yield


def contents(cache: str | Path) -> dict[int, str]:
    """The digest of the values of each committed block."""
    objects = open_object_store(cache)
    found = {}
    for key in objects.sizes():
        if key.startswith(COMMITS) and key != STATIC_RECORD:
            record = decode_record(objects.read(key).data)
            if isinstance(record, CommitRecord):
                found[record.block] = record.content
    return found


# Ways of losing a file that show in its size


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


LOSSES = [remove, empty, cut]
