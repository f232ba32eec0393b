"""How fast the device is, and how fast both stages are on it."""

import os
from argparse import Namespace
from statistics import median
from time import perf_counter
from typing import Final

import torch

from benchmarks import extract, step
from benchmarks.gpu.place import Place, Tell
from benchmarks.gpu.small import write_rows
from benchmarks.stream import block_files, epoch_of, per_second, read_raw, read_stream
from benchmarks.synthetic import CacheShape, answer_lengths, say, timed, write_cache
from mav.cache_schema.reader import CacheReader
from mav.pipeline.loader.dataset import prefetch

_COPIES: Final = 5
_AFTER_BARE: Final = 10
"""The padded way takes a few times as long as the bare passes; so many of these are left to it."""


def machine(place: Place, tell: Tell) -> None:
    """Tell what the device is, and its rates of products and copies."""
    tell(**place.described())
    tell(matmul_flops_per_second=place.matmul_rate)
    source = torch.empty(place.sizes.copy_bytes, dtype=torch.uint8, device=place.device).fill_(1)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(timed(place.device, lambda: target.copy_(source)) for _ in range(_COPIES))
    # Read once and written once.
    tell(copy_bytes_per_second=2 * place.sizes.copy_bytes / best)


def extraction(place: Place, tell: Tell) -> None:
    """Time `mav extract`, its bare forward passes, and the padded way.

    `share_of_matmul` is the rate of the bare passes' floating-point operations over that of a large
    product; `extract_share_of_matmul` is that of the whole stage, writing included.
    """
    base, sizes = place.base, place.sizes
    work = place.folder("extraction")
    rows = write_rows(
        work / "rows.jsonl",
        sizes.rows,
        sizes.prompt_tokens,
        sizes.response_tokens,
        base.vocab_size,
    )
    options = ["--base-model", "random", "--dataset", str(rows), "--device", str(place.device)]
    asked = extract.parse([*options, "--batch-tokens", str(sizes.batch_tokens)])
    asked.dtype = str(place.dtype).removeprefix("torch.")
    task = extract.make_task(asked, base, work, sizes.rows)
    warm = extract.make_task(asked, base, work, max(2, sizes.rows // 16))
    tokens = int(task.pairs.shared_length.sum())
    peak, flops = place.matmul_rate, task.flops()
    tell(pairs=len(task.pairs), packed_tokens=tokens)
    seconds = task.extract()
    tell(
        extract_tokens_per_second=tokens / seconds,
        extract_pairs_per_second=len(task.pairs) / seconds,
        extract_share_of_matmul=flops / seconds / peak,
        bytes_written_per_second=task.cache_bytes() / seconds,
    )
    task.bare()
    bare: list[float] = []
    while len(bare) < sizes.rounds and (not bare or place.left > _AFTER_BARE * bare[-1]):
        bare.append(task.bare())
    tell(
        tokens_per_second=tokens / median(bare),
        share_of_matmul=flops / median(bare) / peak,
        extract_over_bare=median(bare) / seconds,
    )
    warm.padded()
    padded = task.padded()
    tell(
        padded_pairs_per_second=len(task.pairs) / padded,
        extract_over_padded=padded / seconds,
    )


def training_step(place: Place, tell: Tell) -> None:
    """Time a training step as `mav train` takes it; see `benchmarks.step`."""
    if place.device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    found = step.measure(step.parse(place.sizes.step), place.folder("step"))
    wanted = (
        *("tokens_per_second", "flops_over_matmul", "step_seconds", "optimizer_seconds"),
        *("forward_backward_seconds", "peak_device_bytes", "matmul_flops_per_second"),
        *("parameters", "steps", "kinds"),
    )
    tell(**{name: found[name] for name in wanted})


def stream(place: Place, tell: Tell) -> None:
    """Time an epoch's batches by the number of threads that read, to the host and to the device."""
    sizes = place.sizes
    width = int(sizes.base["hidden_size"])
    shape = CacheShape(
        hidden_size=width, pooled_size=width, vocab_size=128, block_tokens=sizes.block_tokens
    )
    mean = sizes.block_tokens / 10
    pairs = max(2, round(sizes.gigabytes * 1e9 / shape.token_bytes / (2 * mean)))
    say("writing the cache")
    reader = write_cache(
        place.folder("stream") / "cache", answer_lengths(pairs, mean, sizes.block_tokens), shape
    )
    tell(gigabytes=reader.plan.tokens * shape.token_bytes / 1e9)
    files = block_files(reader)
    read_raw(files)
    tell(files_bytes_per_second=per_second(lambda: read_raw(files))[0])
    by_threads: dict[str, dict[str, float]] = {}
    for threads in sizes.threads:
        rates = _rates(reader, threads, place.device)
        by_threads[str(threads)] = rates
        tell(by_threads=by_threads)


def _rates(reader: CacheReader, threads: int, device: torch.device) -> dict[str, float]:
    epoch = epoch_of(reader, Namespace(batch_size=16, workers=threads))
    read_stream(epoch)  # makes the memory that epochs hand on to each other
    host, _ = per_second(lambda: read_stream(epoch))
    pinned = device.type == "cuda"
    size = 0
    started = perf_counter()

    def move() -> None:
        nonlocal size
        for batch in prefetch(epoch, pinned=pinned):
            size += sum(rows.nbytes for rows in batch.to(device).rows.values())

    seconds = timed(device, move)
    say(f"{threads} threads: {host / 1e9:.2f} GB/s, {perf_counter() - started:.1f} s to the device")
    return {"host": host, "device": size / seconds}
