"""One configuration of `benchmarks.engine`: greedy answers to random prompts, all at once.

A program: `python -m benchmarks.engine.configuration JOB`, which prints a line of JSON. Seconds are
of the processor, as other work on the machine does not count in them, and of the clock.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.engine.server import with_server


def prompts_of(job: dict[str, Any]) -> list[list[int]]:
    """Return random prompts that have nothing in common, the same for every configuration."""
    chance = random.Random(0)  # noqa: S311
    first, last = job["token_range"]
    length = job["prompt_tokens"]
    return [[chance.randrange(first, last) for _ in range(length)] for _ in range(job["requests"])]


def with_vllm(job: dict[str, Any]) -> Callable[[float | None], int]:
    """Return what answers all prompts at an alpha in vLLM, and says how many tokens it wrote."""
    from vllm import LLM, SamplingParams

    from mav.vllm import engine_args

    arguments: dict[str, Any] = {"model": job["model"]}
    if job["head"] is not None:
        arguments = engine_args(job["head"], job["model"])
    llm = LLM(
        **arguments,
        dtype=job["dtype"],
        max_num_seqs=job["requests"],
        max_model_len=job["prompt_tokens"] + job["new_tokens"] + 1,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=job["kv_cache_bytes"],
        enforce_eager=job["eager"],
    )
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in prompts_of(job)]

    def answer(alpha: float | None) -> int:
        extra: dict[str, Any] = {} if alpha is None else {"extra_args": {"alpha": alpha}}
        most = job["new_tokens"]
        params = SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True, **extra)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return answer


def with_batches(job: dict[str, Any]) -> Callable[[float | None], int]:
    """Return the same for one batch of MAV's own, as `mav generate` decodes a file of prompts."""
    from mav.pipeline.decoding.generate import decode
    from mav.pipeline.decoding.inference import MAVInference
    from mav.pipeline.decoding.options import GenerationOptions
    from mav.pipeline.decoding.steering.strengths import as_strength

    mav = MAVInference(job["head"], job["model"], dtype=job["dtype"])
    decoding = GenerationOptions(max_new_tokens=job["new_tokens"])
    prompts = prompts_of(job)

    def answer(alpha: float | None) -> int:
        strengths = [as_strength(alpha or 0.0)] * len(prompts)
        # None ends before its last token, as with vLLM.
        length = job["new_tokens"]
        answers, _ = decode(mav.joined, prompts, strengths, decoding, min_new_tokens=length)
        return sum(map(len, answers))

    return answer


def measured(
    answer: Callable[[float | None], int], used: Callable[[], float], alpha: float | None
) -> dict[str, float]:
    """Return seconds of the processor and of the clock, and how many tokens were written."""
    processor, clock = used(), time.perf_counter()
    tokens = answer(alpha)
    return {
        "processor_seconds": used() - processor,
        "seconds": time.perf_counter() - clock,
        "tokens": tokens,
    }


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer at each alpha in turn, as often as asked, after one round that is not counted."""
    used: Callable[[], float] = time.process_time
    if job["way"] == "serve":
        answer, used = with_server(job, prompts_of(job))
    else:
        answer = (with_batches if job["way"] == "mav" else with_vllm)(job)
    for alpha in job["alphas"]:
        answer(alpha)
    return [
        {"alpha": alpha, "round": number, **measured(answer, used, alpha)}
        for number in range(job["rounds"])
        for alpha in job["alphas"]
    ]


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
