"""Pairs a second from the cache over those with the base in the loop.

`python -m benchmarks.in_loop --json --dataset FILE` trains heads of the same size on the same
pairs in two ways: from a cache, with the objects `mav train` uses, and as in
`benchmarks.in_loop_training`.
After a warm-up step of each, rounds alternate between one step in the loop, on pairs padded to the
full length, and one epoch from the cache, from opening it to the last step. Rates are medians over
rounds. Extraction is timed apart: the whole call but loading the base, which both ways need; its
forward passes and writing alone are `extraction_forward_seconds`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from accelerate import Accelerator

from benchmarks.in_loop_training import InLoopTrainer, PaddedAnswers, pad_answers
from benchmarks.synthetic import log_to_stderr, machine, new_head, say, timed
from mav.cache_schema.errors import MAVError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.demo.run import installed_base
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset, StreamMemory, prefetch
from mav.pipeline.loader.sampler import StepLayout, order_epoch
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.training.defaults import settled
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.trainer import Trainer

_SECONDS: Final = "extraction.json"


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """A cache and what it took.

    Attributes:
        root: Its folder.
        reader: It, opened.
        seconds: Time of its extraction, or None where nobody took it.
        forward_seconds: The part of it that grows with the pairs: forward passes and writing.
    """

    root: Path
    reader: CacheReader
    seconds: float | None
    forward_seconds: float | None


def extract_timed(asked: argparse.Namespace, base: BaseModel, work: Path) -> Extracted:
    """Extract the cache, or take the one that is there with the time it took then."""
    root, record = work / "cache", work / _SECONDS
    options = ExtractOptions(
        base_model=asked.base_model,
        data=DataSource(id=asked.dataset, limit=asked.limit),
        output=root,
        pooled_size=asked.pooled_size,
        max_length=asked.max_length,
        device=str(base.device),
    )
    started = perf_counter()
    report = extract(options, base=base)
    seconds = perf_counter() - started
    if report.pairs_done == report.manifest.data.pairs:
        record.write_text(json.dumps({"seconds": seconds, "forward_seconds": report.seconds}))
    elif report.pairs_done:
        record.unlink(missing_ok=True)  # parts of two calls are not the time of one extraction
    found = json.loads(record.read_text()) if record.is_file() else {}
    return Extracted(
        root=root,
        reader=CacheReader(root),
        seconds=found.get("seconds"),
        forward_seconds=found.get("forward_seconds"),
    )


class InLoopWay:
    """Steps with the base in the loop, on one batch of pairs after another."""

    def __init__(
        self, trainer: InLoopTrainer, base: BaseModel, pairs: TokenizedPairs, length: int
    ) -> None:
        self._trainer = trainer
        self._base = base
        self._pairs = pairs
        self._length = length

    def batch(self, number: int, size: int) -> tuple[PaddedAnswers, PaddedAnswers]:
        """Return chosen and rejected answers of the pairs of a step, padded, on the device."""
        which = [index % len(self._pairs) for index in range(number * size, (number + 1) * size)]
        chosen, rejected = (
            pad_answers(
                self._pairs,
                which,
                answer,
                length=self._length,
                padding=int(self._base.tokenizer.eos_token_id),
                device=self._base.device,
            )
            for answer in ("chosen", "rejected")
        )
        return chosen, rejected

    def seconds(self, number: int, size: int) -> float:
        """Time a step; its batch is made beforehand, as a loader would."""
        batch = self.batch(number, size)
        return timed(self._base.device, lambda: self._trainer.step(*batch))


class CachedWay:
    """Epochs from the cache, as `mav train` takes them."""

    def __init__(
        self, trainer: Trainer, cache: Extracted, *, batch_size: int, workers: int
    ) -> None:
        self._trainer = trainer
        self._reader = cache.reader
        self._base = CachedBase(cache.reader, trainer.accelerator.device, trainer.dtype)
        self._batch_size = batch_size
        self._workers = workers
        self._memory = StreamMemory()

    def seconds(self, epoch: int, rate: float, steps: int | None = None) -> float:
        """Time an epoch, or its first steps."""
        return timed(self._trainer.accelerator.device, lambda: self._train(epoch, rate, steps))

    def _train(self, epoch: int, rate: float, steps: int | None) -> None:
        layout = StepLayout(batch_size=self._batch_size, grad_accum=1)
        stream = CachedPreferenceDataset(
            self._reader,
            order_epoch(self._reader.plan, None, layout, seed=0, epoch=epoch),
            workers=self._workers,
            memory=self._memory,
        )
        seen = MetricAccumulator()
        batches = islice(prefetch(stream), steps)
        for step, batch in enumerate(batches):
            there = batch.to(self._trainer.accelerator.device)
            self._trainer.step(step, rate, [there], self._base, seen)


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure both ways; return what is printed."""
    accelerator = Accelerator(mixed_precision="no")
    base = load_base(asked.base_model, device=str(accelerator.device))
    cache = extract_timed(asked, base, work)
    options = TrainOptions(
        cache=cache.root,
        output_dir=work / "head",
        expansion_size=asked.expansion_size,
        objective="mav",
        batch_size=asked.batch_size,
        grad_accum=1,
    )
    options = settled(options, cache.reader.manifest, accelerator.device)
    pairs = tokenize_pairs(
        read_pairs(DataSource(id=asked.dataset, limit=asked.limit), ReadCounts()),
        base.tokenizer,
        asked.max_length,
    )
    layers = cache.reader.manifest.states.layers
    head = new_head(cache.reader, asked.expansion_size).to(base.device)
    in_loop = InLoopWay(InLoopTrainer(options, base, layers, head), base, pairs, asked.max_length)
    cached = CachedWay(
        Trainer(options, accelerator, new_head(cache.reader, asked.expansion_size).to(base.device)),
        cache,
        batch_size=asked.batch_size,
        workers=asked.workers,
    )
    rounds = measure_rounds(asked, options, in_loop, cached)
    return figures(asked, options, cache, head, rounds)


def measure_rounds(
    asked: argparse.Namespace, options: TrainOptions, in_loop: InLoopWay, cached: CachedWay
) -> list[dict[str, float]]:
    """Warm up and alternate; return seconds of a step in the loop and of an epoch, by round."""
    warm = in_loop.seconds(0, asked.batch_size)
    warm_cached = cached.seconds(0, options.learning_rate, steps=1)
    say(f"warm-up: a step in the loop {warm:.2f} s, one from the cache {warm_cached:.2f} s")
    rounds = []
    for number in range(1, asked.steps + 1):
        found = {
            "in_loop_step_seconds": in_loop.seconds(number, asked.batch_size),
            "cached_epoch_seconds": cached.seconds(number, options.learning_rate),
        }
        say(
            f"round {number} of {asked.steps}: a step in the loop "
            f"{found['in_loop_step_seconds']:.2f} s, an epoch from the cache "
            f"{found['cached_epoch_seconds']:.2f} s"
        )
        rounds.append(found)
    return rounds


def figures(
    asked: argparse.Namespace,
    options: TrainOptions,
    cache: Extracted,
    head: AlignmentHead,
    rounds: list[dict[str, float]],
) -> dict[str, Any]:
    """Return rates, ratios and what they were measured with."""
    manifest, device = cache.reader.manifest, head.device
    pairs = manifest.data.pairs
    epoch = median(found["cached_epoch_seconds"] for found in rounds)
    in_loop = asked.batch_size / median(found["in_loop_step_seconds"] for found in rounds)
    whole = None if cache.seconds is None else pairs / (epoch + cache.seconds)
    return {
        "pairs_over_in_loop": pairs / epoch / in_loop,
        "pairs_over_in_loop_with_extraction": None if whole is None else whole / in_loop,
        "cached_pairs_per_second": pairs / epoch,
        "in_loop_pairs_per_second": in_loop,
        "cached_with_extraction_pairs_per_second": whole,
        "extraction_seconds": cache.seconds,
        "extraction_forward_seconds": cache.forward_seconds,
        "pairs": pairs,
        "response_tokens": manifest.plan.tokens,
        "cached_pairs_measured": pairs * len(rounds),
        "in_loop_pairs_measured": asked.batch_size * len(rounds),
        "rounds": rounds,
        "head_parameters": head.config.total_parameters,
        "settings": {
            "base_model": asked.base_model,
            "dataset": asked.dataset,
            "limit": asked.limit,
            "max_length": asked.max_length,
            "batch_size": asked.batch_size,
            "steps": asked.steps,
            "pooled_size": asked.pooled_size,
            "expansion_size": asked.expansion_size,
            "objective": options.objective,
            "beta": options.beta,
            "lambda_l2": options.lambda_l2,
            "learning_rate": options.learning_rate,
            "base_dtype": manifest.states.compute_dtypes[0],
            "head_bf16": options.bf16,
            "workers": asked.workers,
        },
        **machine(device),
    }


def table(found: dict[str, Any]) -> str:
    """Lay the figures out."""
    rows = [
        ("base in the loop", found["in_loop_pairs_per_second"], 1.0),
        ("from the cache", found["cached_pairs_per_second"], found["pairs_over_in_loop"]),
        (
            "one epoch, extraction counted",
            found["cached_with_extraction_pairs_per_second"],
            found["pairs_over_in_loop_with_extraction"],
        ),
    ]
    lines = [
        f"{name:<32}" + (f"{rate:>9.2f} pairs/s {ratio:>8.2f}x" if rate else "not measured")
        for name, rate, ratio in rows
    ]
    lines.append(
        f"{found['pairs']} pairs, base in {found['settings']['base_dtype']}, {found['device_name']}"
    )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", default=None, help="by default the installed SmolLM2-135M")
    parser.add_argument("--dataset", required=True, help="file of preference pairs")
    parser.add_argument("--limit", type=int, default=200, help="rows of the data set")
    parser.add_argument("--expansion-size", type=int, default=2048)
    parser.add_argument("--pooled-size", type=int, default=576)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs in a step of both ways")
    parser.add_argument("--steps", type=int, default=3, help="steps in the loop, and rounds")
    parser.add_argument("--workers", type=int, default=2, help="threads that read the cache")
    parser.add_argument("--work", type=Path, default=None, help="folder to keep the cache in")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    for name in ("batch_size", "steps"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(asked, name)}, expected 1 up")
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    # torch reads it at its first allocation; both ways allocate gigabytes in every step.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    asked = parse(argv)
    try:
        asked.base_model = asked.base_model or str(installed_base())
        with tempfile.TemporaryDirectory() as temporary:
            work = asked.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            found = measure(asked, work)
    except MAVError as error:
        sys.exit(f"Error: {error}")
    print(json.dumps(found, indent=1) if asked.json else table(found))


if __name__ == "__main__":
    log_to_stderr()
    main()
