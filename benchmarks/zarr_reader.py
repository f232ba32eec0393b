"""Our reader of shards beside zarr-python's own, on one cache: `python -m benchmarks.zarr_reader`.

A synthetic cache with the shapes of LLaMA-7B is read whole, block by block, once by `CacheReader`
and once through `zarr.open_group`, in rounds that alternate, with the page cache warm. Both check
the checksum of every chunk; `CacheReader` also compares those of a shard with its commit record.
`reader_over_zarr` is the ratio of the medians of bytes per second.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import zarr

from benchmarks.synthetic import (
    CacheShape,
    answer_lengths,
    machine,
    require_positive,
    run_in_folder,
    timed,
    write_cache,
)
from mav.cache_schema.reader import BlockMemory, CacheReader

_CPU = torch.device("cpu")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=160, help="pairs of the cache")
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--block-tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of both readers")
    parser.add_argument("--work", type=Path, help="where to write the cache; default: a temporary")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    require_positive(parser, asked)
    return asked


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return both readers' bytes per second."""
    shape = CacheShape(
        hidden_size=asked.hidden_size,
        pooled_size=asked.hidden_size,
        vocab_size=asked.vocab_size,
        block_tokens=asked.block_tokens,
    )
    reader = write_cache(
        work / "cache", answer_lengths(asked.pairs, 128, asked.block_tokens), shape
    )
    total = sum(values.nbytes for values in _by_reader(reader))
    ways: dict[str, Callable[[], object]] = {
        "reader": lambda: [None for _ in _by_reader(reader)],
        "zarr": lambda: [None for _ in _by_zarr(reader, work / "cache")],
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.repeats):
        for name, read in ways.items():
            rounds[name].append(total / timed(_CPU, read))
    rates = {name: median(values) for name, values in rounds.items()}
    return {
        "bytes": total,
        "zarr_version": zarr.__version__,
        "bytes_per_second": rates,
        "rounds": rounds,
        "reader_over_zarr": rates["reader"] / rates["zarr"],
        **machine(_CPU),
    }


def _by_reader(reader: CacheReader) -> Any:
    memory = BlockMemory()
    for block in range(reader.plan.blocks):
        yield from reader.read_block(block, memory).rows.values()


def _by_zarr(reader: CacheReader, root: Path) -> Any:
    group = zarr.open_group(root, mode="r")
    arrays = [group[path] for path in reader.read_block(0).rows]
    for block in range(reader.plan.blocks):
        start = block * reader.plan.block_tokens
        for array in arrays:
            assert isinstance(array, zarr.Array)
            yield array[start : start + reader.plan.used_rows(block)]


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out."""
    rates = figures["bytes_per_second"]
    return "\n".join(
        [
            *(f"{name:<8}{rate / 1e9:>8.2f} GB/s" for name, rate in rates.items()),
            f"reader over zarr-python {figures['zarr_version']}: {figures['reader_over_zarr']:.2f}",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    run_in_folder(parse(argv), measure, table)


if __name__ == "__main__":
    main()
