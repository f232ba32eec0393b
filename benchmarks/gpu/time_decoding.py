"""How fast answers are decoded on the device, and what memory that takes."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.baselines.decoding import weight_bytes
from benchmarks.decoders import ALPHA, Task, Timing, Way, copied, latency, latency_ratio
from benchmarks.gpu.place import Place, Tell
from benchmarks.shapes import read_bytes
from benchmarks.synthetic import wait
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.preferences.prompt_format import PromptFormat
from mav.pipeline.runtime.memory import free_memory


@torch.no_grad()
def decode(place: Place, tell: Tell) -> None:
    """Time a token of one answer, and tell memory: the base, with each head, beside another model.

    The ways take turns, as in `benchmarks.decode`; ratios are medians over rounds.
    """
    base, sizes = place.base, place.sizes
    prompt, new = sizes.decode_tokens
    task = Task.random(base, 1, prompt, new)
    memory = {"base": _peak(place, partial(task.timed, base))}
    heads: dict[str, AlignedLM] = {}
    for shape in sizes.heads:
        aligned = shape.joined(base)
        memory[shape.kind] = _peak(place, partial(task.timed, base, aligned))
        # Each beside the base alone, so that no other head's memory is in its figure.
        aligned.head.to("cpu")
        heads[shape.kind] = aligned
    tell(
        parameters={name: one.head.config.total_parameters for name, one in heads.items()},
        weight_bytes={
            "base": weight_bytes(base.model),
            **{name: weight_bytes(base.model, one.head) for name, one in heads.items()},
        },
        floor_latency={
            name: read_bytes(base, one.head) / read_bytes(base) for name, one in heads.items()
        },
    )
    reward = copied(base)
    memory["two models"] = _peak(place, partial(task.timed, base, reward=reward))
    for one in heads.values():
        one.head.to(base.logits_device)
    tell(
        peak_bytes=memory,
        peak_over_base={
            name: peak / memory["base"]
            for name, peak in memory.items()
            if peak is not None and memory["base"]
        },
    )
    ways: dict[str, Way] = {
        "base": partial(task.timed, base),
        **{name: partial(task.timed, base, one) for name, one in heads.items()},
        "hooks, alpha 0": partial(task.timed, base, heads["mlp"], alpha=0.0),
        "in flight": partial(task.timed_in_flight, heads["mlp"]),
        "head alone": partial(task.timed_head, heads["mlp"]),
        "two models": partial(task.timed, base, reward=reward),
    }
    _tell_latency(place, tell, ways)


def _tell_latency(place: Place, tell: Tell, ways: dict[str, Way]) -> None:
    """Take rounds while there is time, and tell what came of them after each."""
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for number in range(place.sizes.rounds + 1):
        began = perf_counter()
        for name, way in ways.items():
            timing = way()
            # The first round warms up.
            if number:
                timings[name].append(timing)
        if number:
            tell(
                rounds=number,
                seconds_per_token={name: latency(taken) for name, taken in timings.items()},
                first_token_seconds={
                    name: median(one.first for one in taken) for name, taken in timings.items()
                },
                over_base={
                    name: latency_ratio(taken, timings["base"]) for name, taken in timings.items()
                },
            )
        if number and place.left < 2 * (perf_counter() - began):
            break


def _peak(place: Place, answer: Callable[[], object]) -> int | None:
    """Return the most memory of the device while answering; None where that is not counted."""
    if place.device.type == "cpu":
        return None
    answer()
    free_memory()
    torch.accelerator.reset_peak_memory_stats(place.device)
    answer()
    peak: int = torch.accelerator.max_memory_allocated(place.device)
    return peak


@torch.no_grad()
def serve(place: Place, tell: Tell) -> None:
    """Time many requests at once through the server's decoder, in this process, without HTTP."""
    base, sizes = place.base, place.sizes
    tell(
        requests=sizes.requests, new_tokens=sizes.serve_new_tokens, through="ContinuousBatchDecoder"
    )
    figures: dict[str, dict[str, Any]] = {}
    for shape in sizes.heads:
        with shape.joined(base) as aligned:
            _answer(base, aligned, _requests(place, 2, ALPHA)[:2])
            alphas = {shape.kind: ALPHA} if figures else {"base": 0.0, shape.kind: ALPHA}
            for name, alpha in alphas.items():
                asked = _requests(place, sizes.serve_new_tokens, alpha)
                figures[name] = _answer(base, aligned, asked)
                tell(by_way=figures)


def _requests(place: Place, new_tokens: int, alpha: float) -> list[Request]:
    """Return requests with prompts of random lengths."""
    random = np.random.default_rng(0)
    most = place.sizes.serve_prompt_tokens
    return [
        Request(
            is_turn=False,  # without stop strings
            prompt=tuple(random.integers(2, place.base.vocab_size, int(length)).tolist()),
            alpha=AlphaSchedule(((0, alpha),)),
            decoding=GenerationOptions(max_new_tokens=new_tokens),
        )
        for length in random.integers(max(1, most // 4), most + 1, place.sizes.requests)
    ]


def _answer(base: BaseModel, aligned: AlignedLM, requests: list[Request]) -> dict[str, Any]:
    """Answer requests that came together; return figures of it."""
    form = PromptFormat(name="hh", tokenizer=base.tokenizer)
    decoder = ContinuousBatchDecoder(AttachedModel(base=base, aligned=aligned, form=form))
    wait(base.device)
    started = perf_counter()
    tokens = len(decoder.add(requests))
    first = perf_counter() - started
    steps: list[float] = []
    while decoder.sequences:
        before = perf_counter()
        tokens += len(decoder.step())
        steps.append(perf_counter() - before)
    seconds = perf_counter() - started
    return {
        "tokens_per_second": tokens / seconds,
        "decode_tokens_per_second": (tokens - len(requests)) / sum(steps) if steps else None,
        "first_tokens_seconds": first,
        "step_seconds": median(steps) if steps else None,
    }
