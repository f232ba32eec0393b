"""How fast an optimizer step is, and what memory it takes: `python -m benchmarks.step --json`.

Whole steps as `mav train` takes them (products in bfloat16 where the device has it natively,
float32 weights, metrics, clipping, AdamW) on batches already on the device, after one warm-up step;
with the default sizes the head has 641,780,992 parameters. The batches are those of a synthetic
cache.

`flops_over_matmul` is the rate of useful floating-point operations over the best rate of a
4096 x 4096 x 4096 product of that type in the same run. Useful are, for each response token,

    6 * parameters          the head: 2 for a multiply-add, forward and twice backward
    4 * hidden * vocabulary of an `unembedding`: its shift through the output embedding and back
    2 * hidden * vocabulary the base's logits, rebuilt from its final state

Recomputation in the backward pass, the optimizer and everything that is not a product is not
counted, but its time is.

`peak_rss_bytes` is the most memory the process ever had, the making of its input included.
`ACCELERATE_USE_CPU=true` measures the CPU of a machine with an accelerator. The full size takes
about 13 GB of memory on a CPU.
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)

# isort: split

import argparse
import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, get_args

import torch
from accelerate import Accelerator
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from benchmarks.matmul import best_matmul_rate
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
    wait,
    write_cache,
)
from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset
from mav.pipeline.loader.sampler import StepLayout, order_epoch
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.runtime.compute_dtype import plain_name
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.trainer import Trainer

_BLOCK_TOKENS: Final = 1024
_RATE: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What was measured of each step.

    Attributes:
        seconds: The whole step.
        optimizer_seconds: AdamW alone.
        tokens: Its response tokens.
    """

    seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@contextlib.contextmanager
def optimizer_clock(device: torch.device, found: list[float]) -> Iterator[None]:
    """Add the seconds of every optimizer's steps to a list."""
    started = 0.0

    def begin(*_: object) -> None:
        nonlocal started
        wait(device)
        started = perf_counter()

    def end(*_: object) -> None:
        wait(device)
        found.append(perf_counter() - started)

    before = register_optimizer_step_pre_hook(begin)
    after = register_optimizer_step_post_hook(end)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def take_steps(
    asked: argparse.Namespace, trainers: Mapping[str, Trainer], reader: CacheReader
) -> dict[str, Steps]:
    """Take a warm-up step, and those that count, with each trainer in turn on every batch."""
    first, *_ = trainers.values()
    device = first.accelerator.device
    layout = StepLayout(batch_size=asked.pairs, grad_accum=1)
    order = order_epoch(reader.plan, None, layout, seed=0, epoch=0)
    stream = CachedPreferenceDataset(reader, order)
    base, seen = CachedBase(reader, device, first.dtype), MetricAccumulator()
    found = {kind: Steps() for kind in trainers}
    optimizer: list[float] = []
    with optimizer_clock(device, optimizer):
        for step, batch in enumerate(stream):
            there = [batch.to(device)]
            for kind, trainer in trainers.items():
                seconds = timed(device, partial(trainer.step, step, _RATE, there, base, seen))
                say(
                    f"{f'step {step} of {asked.steps}' if step else 'warm-up'}, {kind}: "
                    f"{len(batch.labels)} tokens in {seconds:.2f} s, the optimizer "
                    f"{optimizer[-1]:.2f} s"
                )
                if step:
                    found[kind].seconds.append(seconds)
                    found[kind].optimizer_seconds.append(optimizer[-1])
                    found[kind].tokens.append(len(batch.labels))
    return found


def peak_rss_bytes() -> int:
    """Return the most memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure; return what is printed."""
    accelerator = Accelerator(mixed_precision="no")
    device = accelerator.device
    shape = CacheShape(
        hidden_size=asked.hidden_size,
        pooled_size=asked.pooled_size,
        vocab_size=asked.vocab_size,
        block_tokens=_BLOCK_TOKENS,
    )
    lengths = answer_lengths((asked.steps + 1) * asked.pairs, asked.pair_tokens / 2, _BLOCK_TOKENS)
    say("writing the batches")
    reader = write_cache(work / "cache", lengths, shape)
    heads = {kind: _head_of(reader, kind, asked) for kind in asked.head_types}
    trainers = {kind: new_trainer(reader, accelerator, head) for kind, head in heads.items()}
    first, *_ = asked.head_types
    if asked.lambda_kl is not None:
        name, other = f"{first} with KL", _head_of(reader, first, asked)
        heads[name] = other
        trainers[name] = new_trainer(reader, accelerator, other, lambda_kl=asked.lambda_kl)
    head, trainer = heads[first], trainers[first]
    matmul = best_matmul_rate(asked.matmul_size, device, trainer.dtype)
    parameters = head.config.total_parameters
    say(f"{parameters:,} parameters; the product {matmul / 1e9:,.0f} GFLOP/s before")
    taken = take_steps(asked, trainers, reader)
    steps = taken[first]
    peak = peak_rss_bytes()
    peak_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    after = best_matmul_rate(asked.matmul_size, device, trainer.dtype)
    say(f"the product {after / 1e9:,.0f} GFLOP/s after")
    matmul = max(matmul, after)
    tokens_per_second = sum(steps.tokens) / sum(steps.seconds)
    flops = _useful_flops(head.config, asked) * tokens_per_second
    return {
        "flops_over_matmul": flops / matmul,
        "peak_rss_bytes": peak,
        "peak_device_bytes": peak_device,
        "flops_per_second": flops,
        "matmul_flops_per_second": matmul,
        "tokens_per_second": tokens_per_second,
        "step_seconds": median(steps.seconds),
        "optimizer_seconds": median(steps.optimizer_seconds),
        "forward_backward_seconds": median(
            whole - part for whole, part in zip(steps.seconds, steps.optimizer_seconds, strict=True)
        ),
        "steps": [
            {"seconds": whole, "optimizer_seconds": part, "tokens": tokens}
            for whole, part, tokens in zip(
                steps.seconds, steps.optimizer_seconds, steps.tokens, strict=True
            )
        ],
        "kinds": {
            kind: {
                "parameters": heads[kind].config.total_parameters,
                "training_flops": heads[kind].config.training_flops,
                "tokens_per_second": sum(of_kind.tokens) / sum(of_kind.seconds),
                "tokens_over_first": median(
                    mine / theirs
                    for mine, theirs in zip(steps.seconds, of_kind.seconds, strict=True)
                ),
            }
            for kind, of_kind in taken.items()
        },
        "computed_in": plain_name(trainer.dtype),
        "parameters": parameters,
        "alignment_parameters": head.config.alignment_parameters,
        "settings": {
            name: value for name, value in vars(asked).items() if name not in ("work", "json")
        },
        **machine(device),
    }


def _head_of(reader: CacheReader, kind: HeadKind, asked: argparse.Namespace) -> AlignmentHead:
    mlp = kind == "mlp"
    return new_head(
        reader, asked.expansion_size if mlp else None, kind, None if mlp else asked.rank
    )


def _useful_flops(config: HeadConfig, asked: argparse.Namespace) -> int:
    """Return the useful operations of one response token."""
    biases = config.total_parameters - config.weights
    base: int = 2 * asked.hidden_size * asked.vocab_size
    return config.training_flops + 6 * biases + base


def table(found: dict[str, Any]) -> str:
    """Lay the figures out."""
    lines = [
        f"step                {found['step_seconds']:>10.3f} s, "
        f"{found['tokens_per_second']:,.0f} tokens/s",
        f"  forward, backward {found['forward_backward_seconds']:>10.3f} s, with clipping",
        f"  optimizer         {found['optimizer_seconds']:>10.3f} s",
        f"useful operations   {found['flops_per_second'] / 1e9:>10,.0f} GFLOP/s  "
        f"{found['flops_over_matmul']:.2f} of a product",
        f"product             {found['matmul_flops_per_second'] / 1e9:>10,.0f} GFLOP/s",
        f"peak memory         {found['peak_rss_bytes'] / 1e9:>10.2f} GB",
    ]
    if found["peak_device_bytes"] is not None:
        lines.append(f"  on the device     {found['peak_device_bytes'] / 1e9:>10.2f} GB")
    if len(found["kinds"]) > 1:
        lines += [
            f"{kind:<20}{of_kind['tokens_per_second']:>10,.0f} tokens/s, "
            f"{of_kind['tokens_over_first']:.2f} of the first, {of_kind['parameters']:,} parameters"
            for kind, of_kind in found["kinds"].items()
        ]
    lines.append(
        f"{found['parameters']:,} parameters, {found['computed_in']}, {found['device_name']}"
    )
    return "\n".join(lines)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in get_args(HeadKind):
            raise argparse.ArgumentTypeError(f"got {kind!r}, expected {get_args(HeadKind)}")
    return kinds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step")
    parser.add_argument("--pair-tokens", type=float, default=180.0, help="of both answers, mean")
    parser.add_argument("--steps", type=int, default=3, help="after one of warm-up")
    add_head_options(parser, expansion_size=16384)
    parser.add_argument(
        "--head-types",
        type=_kinds,
        default=("mlp",),
        help="kinds taken in turn, the figures on top being the first one's: mlp,unembedding",
    )
    parser.add_argument("--rank", type=int, default=None, help="of the other kinds")
    parser.add_argument("--lambda-kl", type=float, help="take steps with this penalty in turn too")
    parser.add_argument("--matmul-size", type=int, default=4096)
    return parse_for_folder(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    run_in_folder(parse(argv), measure, table)


if __name__ == "__main__":
    log_to_stderr()
    main()
