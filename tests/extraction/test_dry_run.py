"""What an extraction will take is told, and that there is no room for it, before it starts."""

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mav.cache_schema.arrays import layouts
from mav.cache_schema.choices import Compression, LogitsEncoding
from mav.cache_schema.errors import CacheError, DataError, MismatchError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.size_estimate import METADATA, compressed_share, expected_size
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.dry_run import screen
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.choices import StorageDtype
from tests.support.caches.dry_runs import Asked, interrupt, with_free
from tests.support.caches.written_caches import draft
from tests.support.models.tiny import HIDDEN, save_base, write_rows
from tests.support.running.commands import done, extract_args, mav, tree
from tests.support.sweeps import sweep

ENCODINGS: tuple[LogitsEncoding, ...] = get_args(LogitsEncoding)
STORAGES: tuple[StorageDtype, ...] = get_args(StorageDtype)
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)

JSON_KEYS = {
    *("rows", "pairs", "dropped", "response_tokens", "blocks", "bytes", "bytes_to_write"),
    *("bytes_by_array", "bytes_with", "free_bytes", "fits", "missing_pairs", "pairs_per_second"),
    "hours",
}


pytestmark = pytest.mark.usefixtures("unflushed_disk")


# Sizes


@sweep({"storage": STORAGES, "logits": ENCODINGS}, meet=1)
def test_sizes_are_exact_without_compression(
    asked: Asked, storage: StorageDtype, logits: LogitsEncoding
) -> None:
    asked = asked.changed(storage_dtype=storage, logits=logits, pooled_size=HIDDEN // 2)
    expected = asked.expected()
    assert not asked.output.parent.exists()
    report = asked.run()
    found, told = asked.bytes_by_array(), dict(expected.size.arrays)
    assert told.pop(METADATA) == pytest.approx(found.pop(METADATA), rel=0.05)
    assert told == found
    assert expected.size.total == expected.size.to_write
    assert expected.size.total == pytest.approx(CacheReader(asked.output).stored_bytes(), rel=0.01)
    assert expected.size.total == pytest.approx(report.stored_bytes, rel=0.01)
    assert dataclasses.replace(expected.manifest, complete=True) == report.manifest


# Of what states are stored in and what logits are, each has arrays of its own.
@pytest.mark.parametrize("compression", ["zstd", "blosc"])
@sweep({"storage": STORAGES, "logits": ENCODINGS}, meet=1)
def test_sizes_are_close_with_compression(
    asked: Asked,
    compression: Compression,
    storage: StorageDtype,
    logits: LogitsEncoding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Blocks of many chunks, as they are where rows are wide.
    monkeypatch.setattr("mav.cache_schema.arrays.INNER_CHUNK_BYTES", 1 << 11)
    asked = asked.changed(
        compression=compression, storage_dtype=storage, logits=logits, block_tokens=512
    )
    expected = asked.expected()
    asked.run()
    found = asked.bytes_by_array()
    assert set(expected.size.arrays) == set(found)
    assert expected.size.total == pytest.approx(found.total(), rel=0.05)
    assert expected.size.arrays["hidden_states"] == pytest.approx(found["hidden_states"], rel=0.05)
    assert expected.size.arrays["labels"] < 0.5 * 4 * expected.manifest.plan.tokens


def test_sizes_are_close_where_a_block_is_one_chunk(asked: Asked) -> None:
    asked = asked.changed(compression="blosc", block_tokens=1024)
    expected = asked.expected()
    asked.run()
    assert expected.size.total == pytest.approx(asked.bytes_by_array().total(), rel=0.05)


def test_alternatives_are_what_those_options_would_take(asked: Asked) -> None:
    found = asked.expected()
    told = dict(found.alternatives)
    for logits in ENCODINGS:
        assert told.pop(f"--logits {logits}") == asked.changed(logits=logits).expected().size.total
    for storage in STORAGES:
        other = asked.changed(storage_dtype=storage).expected()
        assert told.pop(f"--storage-dtype {storage}") == other.size.total
    for compression in COMPRESSIONS:
        other = asked.changed(compression=compression).expected()
        # Plan and unembedding are sampled here too.
        assert told.pop(f"--compression {compression}") == pytest.approx(other.size.total, rel=0.01)
    assert not told


def test_the_default_block_size_is_that_of_the_extraction(asked: Asked) -> None:
    asked = asked.changed(block_tokens=None)
    expected = asked.expected()
    assert expected.manifest.plan == asked.run().manifest.plan
    assert expected.size.total == pytest.approx(asked.bytes_by_array().total(), rel=0.01)


def test_what_was_not_sampled_counts_as_not_compressed() -> None:
    manifest, _ = draft(compression="zstd", block_tokens=64)
    labels = np.zeros(64, np.int32)
    share = compressed_share(manifest, {"labels": labels})
    assert share.pop("labels") < 0.5
    assert share == dict.fromkeys(set(layouts(manifest)) - {"labels"}, 1.0)


def test_sizes_of_missing_blocks_add_up() -> None:
    manifest, plan = draft()
    share = dict.fromkeys(layouts(manifest), 1.0)

    def to_write(missing: list[int], begun: bool) -> int:
        size = expected_size(manifest, plan, share, missing=missing, begun=begun)
        assert size.total == expected_size(manifest, plan, share).total
        return size.to_write

    every = list(range(plan.blocks))
    once = to_write([], begun=False)
    assert to_write([], begun=True) == 0
    assert once + sum(to_write([block], begun=True) for block in every) == to_write(every, False)
    assert to_write(every, False) == expected_size(manifest, plan, share).to_write


# What is there already


@pytest.mark.parametrize("blocks", [1, 4])
def test_what_is_missing_of_a_half_done_cache(
    asked: Asked, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(asked, monkeypatch, blocks)
    before = tree(asked.output)
    written = asked.bytes_by_array()
    expected = asked.expected()
    assert tree(asked.output) == before
    plan = json.loads((asked.output / "zarr.json").read_text())["attributes"]["mav"]["plan"]
    report = asked.run()
    assert 0 < expected.missing_pairs < report.manifest.data.pairs
    assert expected.missing_pairs == report.pairs_done
    assert expected.manifest.plan.blocks == plan["blocks"]
    to_come = asked.bytes_by_array().total() - written.total()
    assert expected.size.to_write == pytest.approx(to_come, rel=0.02)
    assert expected.size.total == pytest.approx(asked.bytes_by_array().total(), rel=0.01)


def test_nothing_is_missing_of_a_complete_cache(asked: Asked) -> None:
    asked.run()
    before = tree(asked.output)
    found = asked.expected()
    assert (found.missing_pairs, found.size.to_write, found.hours) == (0, 0, 0.0)
    assert found.size.total == pytest.approx(asked.bytes_by_array().total(), rel=0.01)
    assert found.fits
    assert tree(asked.output) == before


def test_what_the_extraction_would_refuse_is_refused(asked: Asked, tmp_path: Path) -> None:
    write_rows(tmp_path / "none.jsonl", 0)
    with pytest.raises(DataError, match="no usable pair"):
        asked.changed(data=DataSource(id=str(tmp_path / "none.jsonl"))).expected()
    asked.run()
    with pytest.raises(MismatchError, match=r"storage\.states: stored 'computed', asked for 'fp8'"):
        asked.changed(storage_dtype="fp8").expected()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match="exists and is not a MAV cache"):
        asked.changed(output=tmp_path / "other").expected()


# Time


def test_hours_count_missing_pairs_and_processes(asked: Asked) -> None:
    found = dataclasses.replace(
        asked.expected(), missing_pairs=72_000, pairs_per_second=5.0, processes=2
    )
    assert found.hours == 2.0
    assert found.to_json()["pairs_per_second"] == 10.0
    assert "72,000 pairs to run at 10.0 pairs/s (measured on a sample): 2.0 hours" in screen(found)
    soon = dataclasses.replace(found, missing_pairs=1800)
    assert screen(soon).endswith(": 3.0 minutes")


# The command


@pytest.fixture(scope="module")
def saved(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(base, tmp_path_factory.mktemp("saved") / "base")


def test_the_command_tells_it_as_json(saved: Path, data: Path, tmp_path: Path) -> None:
    args = extract_args(saved, data, tmp_path / "deep" / "cache")
    found = json.loads(done(*args, "--dry-run", "--json"))
    assert list(tmp_path.iterdir()) == []
    assert set(found) == JSON_KEYS
    assert (found["rows"], found["pairs"], found["missing_pairs"]) == (24, 24, 24)
    assert (found["blocks"], found["fits"], found["dropped"]) == (5, True, {})
    assert found["bytes"] == found["bytes_to_write"] == sum(found["bytes_by_array"].values())
    assert found["pairs_per_second"] > 0
    assert found["hours"] == pytest.approx(24 / found["pairs_per_second"] / 3600)
    assert json.loads(done(*args, "--json"))["stored_bytes"] == pytest.approx(
        found["bytes"], rel=0.01
    )


def test_the_command_tells_it_on_a_screen(saved: Path, data: Path, tmp_path: Path) -> None:
    result = mav(*extract_args(saved, data, tmp_path / "cache"), "--dry-run")
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []
    text = result.stdout
    assert text.startswith("24 pairs, 2,104 response tokens, 5 blocks\n")
    for line in ("hidden_states", "labels", "pairs/pair_id", "unembedding/weight", METADATA):
        assert re.search(rf"^{line} +[\d.,]+ [kM]B$", text, re.MULTILINE), line
    for option in ("--logits dense", "--storage-dtype fp8", "--compression blosc"):
        assert re.search(rf"^with {option} +[\d.,]+ [kM]B$", text, re.MULTILINE), option
    assert re.search(r"^together +[\d.,]+ [kM]B +\([\d,]+ bytes per token\)$", text, re.MULTILINE)
    assert re.search(r"^yet to be written +[\d.,]+ [kM]B$", text, re.MULTILINE)
    assert re.search(r"^free there +[\d.,]+ [MGT]B$", text, re.MULTILINE)
    assert re.search(r"^24 pairs to run at [\d.,]+ pairs/s \(measured on a sample\): ", text, re.M)
    assert "cannot hold" not in text


def test_the_command_exits_well_though_the_disk_is_too_small(
    saved: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 1000)
    args = extract_args(saved, data, tmp_path / "cache")
    assert done(*args, "--dry-run").endswith("The disk cannot hold it.\n")
    result = mav(*args)
    assert result.exit_code == 1
    assert "Error: " in result.stderr and "GB are free there" in result.stderr
    assert list(tmp_path.iterdir()) == []
