"""Time per token and memory of base, MAV and two models: `python -m benchmarks.decode --json`.

Without an accelerator the base is the installed SmolLM2-135M, with one, or with `--shapes 7b`,
random weights of LLaMA-7B's shapes; all in what the device multiplies natively. Heads have random
weights, and alpha is 1.
A head is named by pooled and expansion size, as in `--heads 576x1024`; those of other kinds by
kind, pooled size and rank: `unembedding-576`, `unembedding-576x64`, `bottleneck-576x256`. Of
several, the figures on top are the first one's. All ways of decoding answer the same prompts in
turn, in one process, one answer of each a round after a round of warm-up.

`mav_over_base_latency` and the other ratios of latency are medians over rounds of the ratio of two
answers' median time between tokens. The first token, and with it the prompt, is left out and told
apart (`first_token_seconds`).

    two_model_over_base   GenARM's way: a reward model of the base's shape, run beside it
    off_over_base         the head's hooks in place and alpha 0
    in_flight_over_generate   the server's decoder over generate(), both steered; it makes text too
    head_seconds          the head alone, on states at hand

`--steered-shares 0.1,0.3` also times each head where it steers only tokens at which the base's
entropy is above a limit: that which such a share of the tokens of the base's own answer exceeds.
`over_mav` and `over_base` are ratios of all time between tokens, since a median would be that of a
token of one sort; `steered_share` is what came of it.

`floor_latency` is what MAV would be over base if time were bytes of weights read: base and head,
each weight once, over the base. Of an input embedding that is not the output's too a row is read,
so it does not count; neither do KV cache and activations.

`mav_over_base_memory` and `two_model_over_base_memory`: the most memory during an answer. On CUDA
what torch had allocated. On a CPU what was resident, each in a process of its own, less what was
resident before there were weights (`libraries_bytes`); `..._over_base_process_memory` is without
that difference. `..._over_base_weights` is the ratio of the bytes of all weights.
With `--int8` the head it was made of is not kept, unlike in `MAVInference`.
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)

# isort: split

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median
from typing import Any, Final

import psutil
import torch

from benchmarks.baselines.decoding import weight_bytes
from benchmarks.decoders import (
    Task,
    Timing,
    Way,
    copied,
    latency,
    latency_ratio,
    take_rounds,
    whole_ratio,
)
from benchmarks.resident import forget_peak, peak_bytes, resident_bytes
from benchmarks.shapes import BaseShape, HeadShape, read_bytes
from benchmarks.synthetic import machine, require_positive, say
from mav.cache_schema.errors import MAVError, UsageError
from mav.pipeline.demo.run import installed_base
from mav.pipeline.runtime.compute_dtype import native_dtype
from mav.pipeline.runtime.devices import pick_device

_REDUCED: Final = "576x1024"
_FULL: Final = "4096x16384"
_LIBRARIES: Final = 1 << 30
_NONE: Final = (None, None, None)


def shapes(asked: argparse.Namespace) -> tuple[BaseShape, list[HeadShape]]:
    """Return the base and the heads that are asked for."""
    if asked.base_model is None and asked.shapes == "installed":
        base = BaseShape(name=str(installed_base()), layers=0)
    else:
        base = BaseShape(name=asked.base_model, layers=asked.layers)
    heads = []
    for part in asked.heads.split(","):
        heads.append(HeadShape.parse(part))
        if asked.int8:
            heads.append(HeadShape.parse(part, int8=True))
    return base, heads


def require_memory(base: BaseShape, heads: Sequence[HeadShape], device: torch.device) -> None:
    """Check that two bases and all heads have room before any is made.

    Raises:
        UsageError: They have not.
    """
    preview = base.preview()
    # In what the device has natively, whatever it is stored in.
    size = native_dtype(device).itemsize
    models = 2 * size * sum(parameter.numel() for parameter in preview.model.parameters())
    made = sum(head.making_bytes(preview, size) for head in heads)
    needed = models + made + _LIBRARIES
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    if needed > free:
        raise UsageError(
            f"Base, reward model and heads take {needed / 1e9:.1f} GB on {device}, where "
            f"{free / 1e9:.1f} GB are free. Use fewer --layers, other --heads or another --device."
        )


def memory_of(
    asked: argparse.Namespace, head: HeadShape | None = None, *, two_models: bool = False
) -> dict[str, int]:
    """Return the memory that one way of decoding takes in this process, in bytes."""
    torch.set_grad_enabled(False)
    device = pick_device(asked.device)
    shape, _ = shapes(asked)
    shape.preview()  # imports what loading would
    before = resident_bytes()
    base = shape.load(device)
    aligned = head.joined(base) if head else None
    reward = copied(base) if two_models else None
    task = Task.random(base, asked.batch_size, asked.prompt_tokens, asked.new_tokens)

    def answer() -> None:
        task.timed(base, aligned, reward=reward)

    answer()
    resident = resident_bytes()
    forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    answer()
    peak = peak_bytes()
    more = [reward.model] if reward else [aligned.head] if aligned else []
    return {
        "weight_bytes": weight_bytes(base.model, *more),
        "libraries_bytes": before,
        "resident_bytes": resident,
        "peak_process_bytes": peak,
        "peak_bytes": (
            torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak - before
        ),
    }


def in_fresh_process(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Return what work returns in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as processes:
        return processes.submit(work, *given, **named).result()


@torch.no_grad()
def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure; return what is printed."""
    device = pick_device(asked.device)
    shape, head_shapes = shapes(asked)
    require_memory(shape, head_shapes, device)
    say("memory of each way")
    base_memory = in_fresh_process(memory_of, asked)
    two_memory = in_fresh_process(memory_of, asked, two_models=True)
    memory = {head.name: in_fresh_process(memory_of, asked, head) for head in head_shapes}

    base = shape.load(device)
    reward = copied(base)
    task = Task.random(base, asked.batch_size, asked.prompt_tokens, asked.new_tokens)
    heads = {head.name: head.joined(base) for head in head_shapes}
    ways: dict[str, Way] = {
        "base": partial(task.timed, base),
        "two_model": partial(task.timed, base, reward=reward),
        "off": partial(task.timed, base, heads[head_shapes[0].name], alpha=0.0),
    }
    for name, aligned in heads.items():
        ways[f"mav {name}"] = partial(task.timed, base, aligned)
        ways[f"in-flight {name}"] = partial(task.timed_in_flight, aligned)
        ways[f"head {name}"] = partial(task.timed_head, aligned)
    limits = {share: task.limit_for(base, share) for share in asked.steered_shares}
    for name, aligned in heads.items():
        for share, limit in limits.items():
            ways[f"limited {share:g} {name}"] = partial(task.timed, base, aligned, above=limit)
    timings = take_rounds(ways, asked.repeats)

    two = {
        "two_model_over_base_latency": latency_ratio(timings["two_model"], timings["base"]),
        **_memory_ratios("two_model", two_memory, base_memory),
    }
    rows = [
        {
            "head": name,
            "over_first_head_latency": latency_ratio(
                timings[f"mav {name}"], timings[f"mav {head_shapes[0].name}"]
            ),
            "parameters": shape_.parameters(base),
            "mav_over_base_latency": latency_ratio(timings[f"mav {name}"], timings["base"]),
            "floor_latency": read_bytes(base, heads[name].head) / read_bytes(base),
            **_memory_ratios("mav", memory[name], base_memory),
            **two,
            "in_flight_over_generate_latency": latency_ratio(
                timings[f"in-flight {name}"], timings[f"mav {name}"]
            ),
            **_seconds(timings[f"mav {name}"]),
            "head_seconds": latency(timings[f"head {name}"]),
            "in_flight": _seconds(timings[f"in-flight {name}"]),
            "limited": [
                {
                    "asked_share": share,
                    "limit_nats": limit,
                    "steered_share": task.steered_share(heads[name], limit),
                    **{
                        f"over_{other}": whole_ratio(
                            timings[f"limited {share:g} {name}"], timings[below]
                        )
                        for other, below in (("mav", f"mav {name}"), ("base", "base"))
                    },
                }
                for share, limit in limits.items()
            ],
            **memory[name],
        }
        for name, shape_ in ((head.name, head) for head in head_shapes)
    ]
    top = (name for name in rows[0] if "_over_" in name or name == "floor_latency")
    return {
        **{name: rows[0][name] for name in top},
        "off_over_base_latency": latency_ratio(timings["off"], timings["base"]),
        "base": {**_seconds(timings["base"]), "read_bytes": read_bytes(base), **base_memory},
        "two_model": {**_seconds(timings["two_model"]), **two_memory},
        "off": _seconds(timings["off"]),
        "heads": rows,
        "rounds": {
            name: [median(timing.tokens) for timing in taken] for name, taken in timings.items()
        },
        "settings": {name: value for name, value in vars(asked).items() if name != "json"},
        **machine(device),
    }


def _memory_ratios(name: str, above: dict[str, int], below: dict[str, int]) -> dict[str, float]:
    return {
        f"{name}_over_base_{what}": above[figure] / below[figure]
        for what, figure in (
            ("memory", "peak_bytes"),
            ("process_memory", "peak_process_bytes"),
            ("weights", "weight_bytes"),
        )
    }


def _seconds(timings: list[Timing]) -> dict[str, float]:
    return {
        "seconds_per_token": latency(timings),
        "first_token_seconds": median(timing.first for timing in timings),
    }


def table(found: dict[str, Any]) -> str:
    """Lay the figures out."""
    lines = [f"{'':<22}{'ms/token':>10}{'over base':>11}{'floor':>8}{'memory':>9}{'weights':>9}"]

    def row(name: str, seconds: float, *ratios: float | None) -> None:
        widths = zip(ratios, (11, 8, 9, 9), strict=True)
        cells = (f"{'' if ratio is None else f'{ratio:.2f}':>{wide}}" for ratio, wide in widths)
        lines.append(f"{name:<22}{1000 * seconds:>10.2f}{''.join(cells)}")

    row("base", found["base"]["seconds_per_token"], 1.0, 1.0, 1.0, 1.0)
    row("hooks, alpha 0", found["off"]["seconds_per_token"], found["off_over_base_latency"], *_NONE)
    for head in found["heads"]:
        ratios = ("over_base_latency", "over_base_memory", "over_base_weights")
        over, memory, weights = (head[f"mav_{ratio}"] for ratio in ratios)
        name = f"MAV {head['head']}"
        row(name, head["seconds_per_token"], over, head["floor_latency"], memory, weights)
        row("  the head alone", head["head_seconds"], None, *_NONE)
        row("  in flight", head["in_flight"]["seconds_per_token"], None, *_NONE)
        lines += [
            f"  above {one['limit_nats']:.2f} nats: {one['steered_share']:.0%} of tokens steered, "
            f"in {one['over_mav']:.2f} of the time of all, {one['over_base']:.2f} of the base's"
            for one in head["limited"]
        ]
    row(
        "two models",
        found["two_model"]["seconds_per_token"],
        found["two_model_over_base_latency"],
        2.0,
        found["two_model_over_base_memory"],
        found["two_model_over_base_weights"],
    )
    return "\n".join([*lines, f"{found['native_dtype']}, {found['device_name']}"])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base-model", default=None, help="hub id, folder or .gguf file")
    which.add_argument("--shapes", choices=("installed", "7b"), default=None)
    parser.add_argument("--layers", type=int, default=32, help="of 7B shapes; fewer fit a CPU")
    parser.add_argument("--heads", default=None, help=f"such as {_REDUCED},{_FULL}")
    parser.add_argument("--int8", action="store_true", help="each head with int8 weights too")
    parser.add_argument(
        "--steered-shares", default="", help="also steer only so uncertain tokens: 0.1,0.3"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    require_positive(parser, asked)
    try:
        asked.steered_shares = [float(part) for part in asked.steered_shares.split(",") if part]
    except ValueError:
        parser.error(f"--steered-shares: got {asked.steered_shares!r}, expected such as 0.1,0.3")
    if not all(0 < share < 1 for share in asked.steered_shares):
        parser.error(f"--steered-shares: got {asked.steered_shares}, expected shares below 1")
    if asked.new_tokens < 2:
        parser.error("--new-tokens: got 1, expected at least 2, the first being left out")
    if asked.shapes is None and asked.base_model is None:
        on_cpu = asked.device == "cpu" or not torch.accelerator.is_available()
        asked.shapes = "installed" if on_cpu else "7b"
    if asked.layers < 4:
        parser.error(f"--layers: got {asked.layers}, expected at least 4, so that three are read")
    if asked.heads is None:
        asked.heads = _FULL if asked.shapes == "7b" else f"{_REDUCED},{_FULL}"
    for part in asked.heads.split(","):
        try:
            HeadShape.parse(part)
        except ValueError as error:
            parser.error(f"--heads: {error}")
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    asked = parse(argv)
    try:
        found = measure(asked)
    except MAVError as error:
        sys.exit(f"Error: {error}")
    print(json.dumps(found, indent=1) if asked.json else table(found))


if __name__ == "__main__":
    main()
