"""What compression and quantized states cost and give.

    python -m benchmarks.storage --json --dataset FILE

A cache is extracted once and then rewritten in every way it can be stored. For each: bytes of a
response token, the rate of reading blocks as training does (values as computed per second, page
cache warm) and its ratio to reading the same cache's plain bytes, the error of the rebuilt base
logits, and the held-out accuracy of a head trained from it. Lossless compression changes no value,
so heads are trained for the ways states are stored only.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from numpy.typing import NDArray

from benchmarks.synthetic import log_to_stderr
from mav.cache_schema.arrays import layouts, shard_key
from mav.cache_schema.choices import Compression, StatesStorage
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.lock import run_lock
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from mav.pipeline.demo.run import installed_base
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.extraction.encode import quantized_rows
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.loader.batch import CachedBase, collate
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.compute_dtype import native_dtype, plain_name
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train

STORAGES: Final[tuple[StatesStorage, ...]] = ("computed", "int8", "fp8")
COMPRESSIONS: Final[tuple[Compression, ...]] = ("none", "zstd", "blosc")
_REPEATS: Final = 3
_CPU: Final = torch.device("cpu")


def rewrite(
    plain: CacheReader, root: Path, storage: StatesStorage, compression: Compression
) -> CacheReader:
    """Write a plain cache again in another way."""
    manifest = dataclasses.replace(
        plain.manifest,
        complete=False,
        storage=dataclasses.replace(
            plain.manifest.storage, states=storage, compression=compression
        ),
    )
    stored = plain.read_unembedding()
    columns: dict[str, NDArray[Any]] = {
        "pair_id": plain.pair_id,
        "prompt_id": plain.prompt_id,
        "source": plain.read_sources(),
        "source_row": plain.read_source_rows(),
    }
    objects = open_object_store(root)
    with run_lock(objects) as run:
        writer = CacheWriter.create(objects, run, manifest, plain.plan, columns, stored)
        for number in range(plain.plan.blocks):
            block = plain.read_block(number)
            rows = block.rows
            if storage != "computed":
                rows = quantized_rows(rows, manifest, _CPU)
            writer.write_block(number, len(block.pairs), rows)
        writer.complete()
    return CacheReader(root)


def bytes_per_token(root: Path, reader: CacheReader) -> float:
    """Bytes on disk of all per-token arrays over response tokens."""
    sizes = open_object_store(root).sizes()
    keys = [
        shard_key(layout, block)
        for layout in layouts(reader.manifest).values()
        if layout.spec.kind == "block"
        for block in range(reader.plan.blocks)
    ]
    return sum(sizes[key] for key in keys) / reader.manifest.plan.tokens


def values_per_second(reader: CacheReader) -> float:
    """Bytes of values, as training gets them, per second of reading all blocks; the best of 3."""
    best = 0.0
    for _ in range(_REPEATS):
        started, size = perf_counter(), 0
        for block in range(reader.plan.blocks):
            size += sum(rows.nbytes for rows in reader.read_block(block).rows.values())
        best = max(best, size / (perf_counter() - started))
    return best


def raw_per_second(root: Path) -> float:
    """Bytes per second of reading the plain cache's files one after the other; the best of 3."""
    best = 0.0
    for _ in range(_REPEATS):
        started, size = perf_counter(), 0
        for path in sorted(root.glob("*/c.*")):
            size += len(path.read_bytes())
        best = max(best, size / (perf_counter() - started))
    return best


def logits_error(plain: CacheReader, other: CacheReader) -> float:
    """Root mean square error of base logits over that of the plain ones, on the first block."""
    return float(
        torch.stack([(a - b).square().mean() for a, b in _logits(plain, other)]).mean().sqrt()
        / torch.stack([a.square().mean() for a, _ in _logits(plain, other)]).mean().sqrt()
    )


def _logits(plain: CacheReader, other: CacheReader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    pairs = min(32, len(plain.plan.pairs_of(0)))
    given = []
    for reader in (plain, other):
        block = reader.read_block(0)
        batch = collate([(block, index) for index in range(pairs)], reader.manifest, pairs)
        given.append(CachedBase(reader, _CPU, native_dtype(_CPU)).logits(batch))
        tokens = len(batch.labels)
    for start in range(0, tokens, 256):
        stop = min(tokens, start + 256)
        yield given[0].chunk(start, stop), given[1].chunk(start, stop)


def accuracy(root: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train a head for one epoch; return its held-out reward accuracy at alpha 1."""
    train(TrainOptions(cache=root, output_dir=folder, **options))
    found = evaluate(
        EvaluateOptions(head=str(folder / "last"), cache=root, alphas=(1.0,), pairs="held-out")
    ).results[0]
    return {"accuracy": found.reward_accuracy, "interval": found.reward_accuracy_interval}


def main() -> None:
    """Measure, and print one JSON object or a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", default=None, help="by default the installed SmolLM2-135M")
    parser.add_argument("--dataset", required=True, help="file of preference pairs")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--expansion-size", type=int, default=1024)
    parser.add_argument("--pooled-size", type=int, default=576)
    parser.add_argument("--eval-fraction", type=float, default=0.12)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--work", type=Path, default=None, help="folder to keep the caches in")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(asked, asked.work or Path(temporary))
    if asked.json:
        json.dump({"rows": rows}, sys.stdout, indent=1)
        print()
        return
    for row in rows:
        print(
            f"{row['states']:<10}{row['compression']:<8}{row['bytes_per_token']:>8.0f} B/token  "
            f"{row['read_gb_per_s']:>6.2f} GB/s  {row['read_over_raw']:>5.2f} of raw  "
            f"logits {row['logits_error']:.1e}  accuracy {row.get('accuracy', float('nan')):.1%}"
        )


def measure(asked: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Return one row for every way of storing."""
    root = work / "computed-none"
    extract(
        ExtractOptions(
            base_model=asked.base_model or str(installed_base()),
            data=DataSource(id=asked.dataset, limit=asked.limit),
            pooled_size=asked.pooled_size,
            output=root,
        ),
    )
    plain = CacheReader(root)
    options = {
        "expansion_size": asked.expansion_size,
        "learning_rate": asked.learning_rate,
        "eval_fraction": asked.eval_fraction,
    }
    found = []
    for storage in STORAGES:
        trained: dict[str, Any] = {}
        for compression in COMPRESSIONS:
            if (storage, compression) == ("computed", "none"):
                place, reader = root, plain
            else:
                place = work / f"{storage}-{compression}"
                reader = rewrite(plain, place, storage, compression)
            rate = values_per_second(reader)
            row = {
                "states": storage,
                "compression": compression,
                "computed_in": plain_name(native_dtype(_CPU)),
                "bytes_per_token": bytes_per_token(place, reader),
                "read_gb_per_s": rate / 1e9,
                "read_over_raw": rate / raw_per_second(root),
                "logits_error": logits_error(plain, reader),
            }
            # Written before it is trained: the figures so far are worth keeping.
            print(json.dumps(row), file=sys.stderr)
            trained = trained or accuracy(place, work / f"head-{storage}", options)
            found.append(row | trained)
    return found


if __name__ == "__main__":
    log_to_stderr()
    main()
