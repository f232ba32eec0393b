"""The benchmarks that need no base model measure what they say, at sizes that take no time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import planning, startup, step, stream, zarr_reader
from benchmarks.synthetic import CacheShape, answer_lengths, write_cache
from mav.cache_schema.arrays import bytes_per_token
from mav.cache_schema.reader import CacheReader
from tests.support.caches.written_caches import quick_disk
from tests.support.models.tiny import save_base, tiny_base

HEAD = (
    *("--hidden-size", "48", "--pooled-size", "48", "--expansion-size", "40"),
    *("--vocab-size", "300"),
)
STREAM = (
    *("--gigabytes", "0.002", "--batch-size", "4", "--steps", "3", "--warm-up", "1"),
    *("--repeats", "2", *HEAD),
)
STEP = ("--pairs", "3", "--pair-tokens", "30", "--steps", "2", "--matmul-size", "64", *HEAD)


def run(benchmark: Any, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with quick_disk():
        benchmark.main(list(options))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [(), ("--pooled-size", "32", "--compression", "zstd")],
    ids=["unpooled", "pooled"],
)
def test_stream(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(stream, capsys, *STREAM, *options, "--json"))
    for ratio, above, below in (
        ("stream_over_raw", "stream_bytes_per_second", "raw_bytes_per_second"),
        ("cache_over_memory", "cache_steps_per_second", "memory_steps_per_second"),
    ):
        assert found[ratio] == pytest.approx(found[above] / found[below])
        assert found[ratio] > 0
    assert found["delivered_bytes"] == found["stream_tokens"] * (3 * 48 * 2 + 4)
    assert found["delivered_bytes"] == pytest.approx(2e6, rel=0.3)
    assert found["settings"]["gigabytes"] == 0.002
    assert len(found["raw_rounds"]) == len(found["cache_step_rounds"]) == 2


def test_stream_table(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(stream, capsys, *STREAM, "--storage-dtype", "int8")
    assert "of the files" in printed and "of memory" in printed


def test_step(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(step, capsys, *STEP, "--pooled-size", "32", "--json"))
    parameters = (3 * 32 + 1) * 32 + (32 + 1) * 40 + (40 + 1) * 300
    assert found["parameters"] == parameters
    assert found["alignment_parameters"] == parameters - (3 * 32 + 1) * 32
    flops = (6 * parameters + 2 * 48 * 300) * found["tokens_per_second"]
    assert found["flops_over_matmul"] == pytest.approx(flops / found["matmul_flops_per_second"])
    # Importing torch alone takes this much.
    assert 100e6 < found["peak_rss_bytes"] < 1e12
    assert len(found["steps"]) == 2
    for taken in found["steps"]:
        assert 0 < taken["optimizer_seconds"] < taken["seconds"]


def test_steps_of_several_kinds_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("--head-types", "mlp,unembedding,bottleneck", "--rank", "8")
    found = json.loads(run(step, capsys, *STEP, *kinds, "--json"))
    assert [*found["kinds"]] == ["mlp", "unembedding", "bottleneck"]
    assert found["kinds"]["mlp"]["tokens_over_first"] == 1
    assert found["kinds"]["mlp"]["parameters"] == found["parameters"]
    assert found["kinds"]["bottleneck"]["parameters"] == 8 * (48 + 300)
    assert all(one["tokens_over_first"] > 0 for one in found["kinds"].values())
    assert "unembedding " in step.table(found) and " of the first" in step.table(found)


def test_steps_with_a_penalty_beside_those_without(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(step, capsys, *STEP, "--lambda-kl", "0.5", "--json"))
    assert [*found["kinds"]] == ["mlp", "mlp with KL"]
    assert found["kinds"]["mlp with KL"]["parameters"] == found["parameters"]


def test_a_kind_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.main(["--head-types", "mlp,linear"])
    assert "got 'linear'" in capsys.readouterr().err


def test_step_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert "of a product" in run(step, capsys, *STEP)


@pytest.mark.parametrize("benchmark", [step, stream])
def test_numbers_must_be_positive(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--steps", "0"])
    assert "--steps: got 0, expected more than 0" in capsys.readouterr().err


def test_lengths_are_realistic() -> None:
    lengths = answer_lengths(20_000, 110, 1024)
    assert lengths.mean() == pytest.approx(110, rel=0.02)
    quarter, half, most = np.percentile(lengths, (25, 50, 75))
    assert 65 < quarter < half < most < 140
    assert answer_lengths(20_000, 110, 128).sum(axis=1).max() <= 128


def test_raw_reading_is_of_the_files_an_epoch_reads(tmp_path: Path) -> None:
    reader = small_cache(tmp_path / "cache")
    files = stream.block_files(reader)
    assert len(set(files)) == len(files) == 3 * reader.plan.blocks
    # All but these are the plan, the unembedding and descriptions.
    others = {path.parent.name for path in (tmp_path / "cache").rglob("c.*")}
    assert {path.parent.name for path in files} <= others
    assert stream.read_raw(files) == sum(path.stat().st_size for path in files)


def small_cache(root: Path) -> CacheReader:
    shape = CacheShape(hidden_size=24, pooled_size=16, vocab_size=50, block_tokens=64)
    with quick_disk():
        reader = write_cache(root, answer_lengths(6, 12, 64), shape)
    assert bytes_per_token(reader.manifest) == shape.token_bytes
    return reader


def test_both_readers_of_a_cache(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--pairs", "6", "--hidden-size", "48", "--vocab-size", "300", "--block-tokens", "512")
    figures = json.loads(run(zarr_reader, capsys, *small, "--repeats", "2", "--json"))
    rates = figures["bytes_per_second"]
    assert figures["reader_over_zarr"] == pytest.approx(rates["reader"] / rates["zarr"])
    assert figures["bytes"] > 0
    assert "reader over zarr-python" in zarr_reader.table(figures)


def test_startup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("--blocks", "3", "--rounds", "1", "--request-ms", "40", "--work", str(tmp_path))
    found = json.loads(run(startup, capsys, *options, "--json"))
    seconds = found["seconds"]
    assert [*seconds] == ["bare", "help", "help of train", "inspect", "folder", "bucket"]
    # A listing's first request and its pages, the static record, the manifest and records.
    assert seconds["bucket"] > 3 * 0.04
    assert found["over_bare"]["help"] == pytest.approx(seconds["help"] / seconds["bare"])
    assert "40 ms a request" in startup.table(found)
    assert not [*tmp_path.iterdir()]


def test_planning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = save_base(tiny_base(), tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    begun = "\n\nHuman: How are you?\n\nAssistant: "
    texts = [{"chosen": begun + "well", "rejected": begun + "ill"}, {"chosen": "", "rejected": ""}]
    rows.write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
    options = ("--dataset", str(rows), "--base-model", str(base), "--pairs", "7")
    found = json.loads(run(planning, capsys, *options, "--json"))
    # Every other row is empty; the others differ in their numbers, so that each is a pair.
    assert found["pairs"] == 4
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    assert found["kept_bytes_per_pair"] <= found["peak_bytes_per_pair"]
    assert "pairs/s" in planning.table(found)
