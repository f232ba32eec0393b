"""What comes before the base runs: `python -m benchmarks.planning --json --dataset FILE`.

Rows of HH-RLHF's form are repeated, each time with another number in front of what the human says
first, until there are as many as HH-RLHF has. They are then read, tokenized with the base's own
tokenizer, put into their stored order and packed into blocks, as `mav extract` does at its start.
Every process of a launch does this for itself, at the same time as the others.

    reading_share        of the time, rows alone: reading, splitting and hashing them
    peak_bytes_per_pair  the most memory beyond that of the process before, over the pairs
    kept_bytes_per_pair  what stays for the rest of the run
"""

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.resident import forget_peak, peak_bytes, resident_bytes
from benchmarks.synthetic import machine, parse_for_folder, run_in_folder, say
from mav.cache_schema.plan import plan_blocks
from mav.pipeline.base.gguf_copy import resolve_with_copy
from mav.pipeline.base.pretrained import load_tokenizer
from mav.pipeline.demo.run import installed_base
from mav.pipeline.preferences.load import read_data
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource

_HUMAN = "\n\nHuman: "


def numbered_rows(dataset: Path, count: int) -> Iterator[dict[str, str]]:
    """Yield so many rows of a file, again from its beginning, each with its number.

    Args:
        dataset: JSON lines with `chosen` and `rejected`, transcripts of one prompt; may be gzipped.
        count: How many.
    """
    opened: Any = gzip.open if dataset.suffix == ".gz" else open
    with opened(dataset, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for number, row in enumerate(islice(cycle(rows), count)):
        begun = f"{_HUMAN}[{number}] "
        yield {name: begun + row[name].removeprefix(_HUMAN) for name in ("chosen", "rejected")}


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure; return what is printed."""
    rows = work / "rows.jsonl"
    say(f"writing {asked.pairs:,} rows")
    with rows.open("w", encoding="utf-8") as file:
        for row in numbered_rows(asked.dataset, asked.pairs):
            file.write(json.dumps(row) + "\n")
    source = DataSource(id=str(rows))
    tokenizer = load_tokenizer(resolve_with_copy(asked.base_model or str(installed_base())))
    started = perf_counter()
    for _ in read_pairs(source, ReadCounts()):
        pass
    reading = perf_counter() - started
    before = resident_bytes()
    forget_peak()
    started = perf_counter()
    data = read_data([source], tokenizer, max_length=asked.max_length, form="hh", date=None)
    pairs = data.pairs
    plan = plan_blocks(pairs.response_length, asked.block_tokens)
    seconds = perf_counter() - started
    peak, kept = peak_bytes() - before, resident_bytes() - before
    return {
        "pairs": len(pairs),
        "tokens": len(pairs.tokens),
        "blocks": plan.blocks,
        "seconds": seconds,
        "pairs_per_second": len(pairs) / seconds,
        "tokens_per_second": len(pairs.tokens) / seconds,
        "reading_share": reading / seconds,
        "peak_bytes_per_pair": peak / len(pairs),
        "kept_bytes_per_pair": kept / len(pairs),
        "machine": {
            **machine(torch.device("cpu")),
            "tokenizers_parallelism": os.environ.get("TOKENIZERS_PARALLELISM"),
        },
    }


def table(found: dict[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    return "\n".join(
        [
            f"{found['pairs']:,} pairs, {found['tokens']:,} tokens, {found['blocks']:,} blocks",
            f"{found['seconds']:.1f} s: {found['pairs_per_second']:,.0f} pairs/s, "
            f"{found['tokens_per_second']:,.0f} tokens/s",
            f"reading alone {found['reading_share']:.2f} of it",
            f"memory {found['peak_bytes_per_pair']:,.0f} bytes a pair at most, "
            f"{found['kept_bytes_per_pair']:,.0f} kept",
        ]
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", type=Path, required=True, help="rows of HH-RLHF's form")
    parser.add_argument("--base-model", help="by default the installed SmolLM2-135M")
    parser.add_argument("--pairs", type=int, default=161_000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--block-tokens", type=int, default=4096)
    return parse_for_folder(parser, argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    run_in_folder(parse(argv), measure, table)


if __name__ == "__main__":
    main()
