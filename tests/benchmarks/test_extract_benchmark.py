"""The extraction benchmark measures what it says, on a tiny base."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import extract
from mav.cache_schema.arrays import INNER_CHUNK_BYTES
from tests.support.models.tiny import save_base, tiny_base, write_rows

PAIRS = 6


def run(folder: Path, *options: str) -> str:
    base = save_base(tiny_base(), folder / "base")
    rows = write_rows(folder / "rows.jsonl", PAIRS)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        extract.main(
            [
                *("--base-model", str(base), "--dataset", str(rows), "--dtype", "float32"),
                *("--limit", str(PAIRS), "--repeats", "2", "--device", "cpu", *options),
            ]
        )
    return printed.getvalue()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "_MATMUL", 256)
        printed: dict[str, Any] = json.loads(run(tmp_path_factory.mktemp("measured"), "--json"))
    return printed


def test_ratios(found: dict[str, Any]) -> None:
    for other in ("bare", "padded", "shared_cache"):
        ratios = sorted(
            theirs / own
            for own, theirs in zip(
                found["seconds"]["extract"], found["seconds"][other], strict=True
            )
        )
        assert found[f"extract_over_{other}"] == pytest.approx(sum(ratios) / 2)
    assert found["pairs"] == PAIRS
    assert all(rate > 0 for rate in found["pairs_per_second"].values())
    assert found["flops_over_matmul"] > 0


def test_bytes(found: dict[str, Any]) -> None:
    """The files hold the states, of the common way as computed, of the cache in bfloat16."""
    tokens, vocabulary = found["tokens"]["response"], tiny_base().vocab_size
    computed, kept = (3 * tiny_base().hidden_size * size for size in (4, 2))
    stored = found["bytes_per_token"]
    assert stored["dense_logits"] == 2 * vocabulary
    # Each file of the common way has a header besides.
    assert computed < stored["padded"] < computed + 2 * PAIRS * 2048 / tokens
    # The cache is written in whole chunks, which the states of few tokens do not fill.
    assert kept < stored["extract"] <= 2 * INNER_CHUNK_BYTES / tokens
    at_7b = found["bytes_at_7b_over_dense"]
    assert at_7b["none"] == pytest.approx(3 * 4096 / (3 * 4096 + 32000), rel=1e-3)
    # Its random states do not compress.
    assert all(0 < at_7b[name] <= at_7b["none"] * 1.05 for name in ("zstd", "blosc"))


def test_table(found: dict[str, Any]) -> None:
    printed = extract.table(found)
    assert "extract over bare" in printed and "bytes per response token" in printed
