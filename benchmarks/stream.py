"""Whether the cache keeps up: `python -m benchmarks.stream --json`.

Two ratios, each of medians over rounds that alternate between its two sides, on synthetic caches
with the shapes of LLaMA-7B and with the page cache warm:

- `stream_over_raw`: bytes per second that `CachedPreferenceDataset` and `prefetch` deliver,
  over one whole epoch, by bytes per second of reading the very same files one after the other, each
  whole, into the same memory. An epoch counts from asking for its first batch, so opening the
  cache and checking that it is complete are included. One epoch before, not counted, makes the
  memory that epochs hand on to each other.
- `cache_over_memory`: optimizer steps per second fed from a cache by `prefetch`, by those of the
  same steps fed from a list. Opening the cache is included here too, so a device that takes
  milliseconds for a step wants more `--steps`. Batches are copied to the device in both ways.

`ACCELERATE_USE_CPU=true` measures the CPU of a machine with an accelerator.
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)
from mav.cache_schema.choices import Compression, StatesStorage

# isort: split

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, get_args

from accelerate import Accelerator

from benchmarks.synthetic import (
    CacheShape,
    add_head_options,
    answer_lengths,
    log_to_stderr,
    machine,
    new_head,
    new_trainer,
    parse_for_folder,
    run_in_folder,
    say,
    timed,
    write_cache,
)
from mav.cache_schema.arrays import layouts, shard_key
from mav.cache_schema.reader import CacheReader
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset, StreamMemory, prefetch
from mav.pipeline.loader.sampler import StepLayout, order_epoch
from mav.pipeline.training.metrics import MetricAccumulator

_SMALL_VOCABULARY: Final = 128
"""Of the cache that is only read, so that there is next to no unembedding."""
_RATE: Final = 1e-4


def block_files(reader: CacheReader) -> list[Path]:
    """Return the files of all blocks, which an epoch reads, block after block."""
    every = [lay for lay in layouts(reader.manifest).values() if lay.spec.kind == "block"]
    return [
        Path(reader.location, shard_key(layout, block))
        for block in range(reader.plan.blocks)
        for layout in every
    ]


def read_raw(files: Sequence[Path]) -> int:
    """Read whole files one after the other into the same memory; return their bytes."""
    buffer, size = bytearray(max(path.stat().st_size for path in files)), 0
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            while count := os.readv(file, [buffer]):
                size += count
        finally:
            os.close(file)
    return size


def epoch_of(reader: CacheReader, asked: argparse.Namespace) -> CachedPreferenceDataset:
    """Describe the one epoch that everything here reads, again and again in the same memory."""
    layout = StepLayout(batch_size=asked.batch_size, grad_accum=1)
    order = order_epoch(reader.plan, None, layout, seed=0, epoch=0)
    return CachedPreferenceDataset(reader, order, workers=asked.workers, memory=StreamMemory())


def read_stream(stream: CachedPreferenceDataset) -> int:
    """Take all batches of a stream; return the bytes of their tensors."""
    return sum(sum(rows.nbytes for rows in batch.rows.values()) for batch in prefetch(stream))


def per_second(read: Callable[[], int]) -> tuple[float, int]:
    """Return bytes per second, and bytes."""
    started = perf_counter()
    size = read()
    return size / (perf_counter() - started), size


def measure_stream(asked: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Compare a streamed epoch with reading its files."""
    shape = CacheShape(
        hidden_size=asked.hidden_size,
        pooled_size=asked.hidden_size,
        vocab_size=_SMALL_VOCABULARY,
        block_tokens=asked.block_tokens,
        compression=asked.compression,
        storage=asked.storage_dtype,
    )
    pairs = round(asked.gigabytes * 1e9 / shape.token_bytes / (2 * asked.answer_tokens))
    lengths = answer_lengths(max(1, pairs), asked.answer_tokens, asked.block_tokens)
    say(f"writing a cache of {lengths.sum(dtype=int) * shape.token_bytes / 1e9:.2f} GB of values")
    reader = write_cache(root, lengths, shape)
    files, stream = block_files(reader), epoch_of(reader, asked)
    stored = read_raw(files)
    read_stream(stream)
    raws, streams, delivered = [], [], 0
    for number in range(1, asked.repeats + 1):
        raws.append(per_second(lambda: read_raw(files))[0])
        rate, delivered = per_second(lambda: read_stream(stream))
        streams.append(rate)
        say(
            f"round {number} of {asked.repeats}: files {raws[-1] / 1e9:.2f} GB/s, "
            f"stream {rate / 1e9:.2f} GB/s"
        )
    assert delivered == reader.plan.tokens * shape.token_bytes, "an epoch is every pair once"
    return {
        "stream_over_raw": median(streams) / median(raws),
        "stream_bytes_per_second": median(streams),
        "raw_bytes_per_second": median(raws),
        "stream_rounds": streams,
        "raw_rounds": raws,
        "delivered_bytes": delivered,
        "stored_bytes": stored,
        "stream_pairs": reader.plan.pairs,
        "stream_tokens": reader.plan.tokens,
        "blocks": reader.plan.blocks,
    }


def measure_steps(
    asked: argparse.Namespace, root: Path, accelerator: Accelerator
) -> dict[str, Any]:
    """Compare steps fed from a cache with steps fed from memory."""
    shape = CacheShape(
        hidden_size=asked.hidden_size,
        pooled_size=asked.pooled_size,
        vocab_size=asked.vocab_size,
        block_tokens=asked.block_tokens,
    )
    lengths = answer_lengths(
        asked.steps * asked.batch_size, asked.answer_tokens, asked.block_tokens
    )
    say(f"writing a cache of {asked.steps} steps")
    reader = write_cache(root, lengths, shape)
    device = accelerator.device
    pinned = device.type == "cuda"
    head = new_head(reader, asked.expansion_size)
    trainer = new_trainer(reader, accelerator, head)
    base, stream = CachedBase(reader, device, trainer.dtype), epoch_of(reader, asked)
    held = [batch.pin_memory() if pinned else batch for batch in stream]

    def train(batches: Iterable[Batch]) -> None:
        seen = MetricAccumulator()
        for step, batch in enumerate(batches):
            trainer.step(step, _RATE, [batch.to(device)], base, seen)

    warm = timed(device, lambda: train(held[: asked.warm_up]))
    say(f"warm-up: {min(asked.warm_up, len(held))} steps in {warm:.2f} s")
    from_memory, from_cache = [], []
    for number in range(1, asked.repeats + 1):
        from_memory.append(len(held) / timed(device, lambda: train(held)))
        from_cache.append(len(held) / timed(device, lambda: train(prefetch(stream, pinned=pinned))))
        say(
            f"round {number} of {asked.repeats}: from memory {from_memory[-1]:.3f} steps/s, "
            f"from the cache {from_cache[-1]:.3f} steps/s"
        )
    tokens = reader.plan.tokens / len(held)
    return {
        "cache_over_memory": median(from_cache) / median(from_memory),
        "cache_steps_per_second": median(from_cache),
        "memory_steps_per_second": median(from_memory),
        "cache_step_rounds": from_cache,
        "memory_step_rounds": from_memory,
        "tokens_per_step": tokens,
        "needed_bytes_per_second": tokens * shape.token_bytes * median(from_memory),
        "head_parameters": head.config.total_parameters,
    }


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure both ratios; return what is printed."""
    streamed = measure_stream(asked, work / "stream")
    accelerator = Accelerator(mixed_precision="no")
    settings = {name: value for name, value in vars(asked).items() if name not in ("work", "json")}
    return {
        **streamed,
        **measure_steps(asked, work / "steps", accelerator),
        "settings": settings,
        **machine(accelerator.device),
    }


def table(found: dict[str, Any]) -> str:
    """Lay the figures out."""
    gigabytes = {
        name: found[f"{name}_bytes_per_second"] / 1e9 for name in ("raw", "stream", "needed")
    }
    return "\n".join(
        [
            f"reading the files      {gigabytes['raw']:>8.2f} GB/s",
            f"streaming an epoch     {gigabytes['stream']:>8.2f} GB/s"
            f"  {found['stream_over_raw']:>6.2f} of the files",
            f"steps from memory      {found['memory_steps_per_second']:>8.3f} steps/s, "
            f"{gigabytes['needed']:.3f} GB/s",
            f"steps from the cache   {found['cache_steps_per_second']:>8.3f} steps/s"
            f"  {found['cache_over_memory']:>6.3f} of memory",
            f"{found['delivered_bytes'] / 1e9:.2f} GB per epoch, {found['native_dtype']}, "
            f"{found['device_name']}",
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0, help="values of the epoch read")
    parser.add_argument("--answer-tokens", type=float, default=110.0, help="their mean")
    parser.add_argument("--block-tokens", type=int, default=1024)
    parser.add_argument("--compression", choices=get_args(Compression), default="none")
    parser.add_argument("--storage-dtype", choices=get_args(StatesStorage), default="computed")
    parser.add_argument("--workers", type=int, default=2, help="threads that read")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs in a batch and a step")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the first round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    add_head_options(parser, expansion_size=2048)
    return parse_for_folder(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    run_in_folder(parse(argv), measure, table)


if __name__ == "__main__":
    log_to_stderr()
    main()
