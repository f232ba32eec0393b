"""Requests through an engine of vLLM with heads in it.

A program of its own: `python -m tests.support.engine_run JOB RESULT`, both JSON. A job has `head`,
`base`, `options` of `engine_args`, `engine`, further arguments of `vllm.LLM`, and `rounds`, which
are lists of requests that are sent together. With `steps` requests join, and some are aborted, at
the steps named.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any, Final

SMALL: Final[dict[str, Any]] = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 48,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enforce_eager": True,
    "max_logprobs": -1,
    "disable_log_stats": True,
}
"""An engine in which prompts come in pieces and most requests wait."""


def parameters(request: dict[str, Any]) -> Any:
    """vLLM's sampling parameters of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    given = {"logprobs": -1, "temperature": 0.0, **request.get("sampling", {})}
    if "regex" in request:
        given["structured_outputs"] = StructuredOutputsParams(regex=request["regex"])
    alpha = request.get("alpha")
    extra = {} if alpha is None else {"extra_args": {"alpha": alpha}}
    return SamplingParams(max_tokens=request["max_tokens"], **extra, **given)


def adapter_of(request: dict[str, Any]) -> Any:
    """The LoRA adapter of a request, or None."""
    from vllm.lora.request import LoRARequest

    place = request.get("adapter")
    return None if place is None else LoRARequest("adapter", 1, place)


def answer_of(completion: Any, prompt_logprobs: Any = None) -> dict[str, Any]:
    """Tokens and log-probabilities of a completion; of the vocabulary where all were asked for."""
    found: dict[str, Any] = {"tokens": [*completion.token_ids], "text": completion.text}
    if completion.logprobs is not None:
        found["logprobs"] = [
            [each[token].logprob for token in sorted(each)] for each in completion.logprobs
        ]
    if prompt_logprobs is not None:
        found["prompt_logprobs"] = [
            [each[token].logprob for token in sorted(each)] for each in prompt_logprobs[1:]
        ]
    return found


def in_rounds(llm: Any, rounds: list[list[dict[str, Any]]]) -> list[Any]:
    """The answers of each round, all of its requests sent at once."""
    answers = []
    for requests in rounds:
        outputs = llm.generate(
            [{"prompt_token_ids": request["prompt"]} for request in requests],
            [parameters(request) for request in requests],
            use_tqdm=False,
            lora_request=[adapter_of(request) for request in requests],
        )
        answers.append(
            [
                [answer_of(one, output.prompt_logprobs) for one in output.outputs]
                for output in outputs
            ]
        )
    return answers


def at_random(llm: Any, requests: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The answers to requests that join between steps; those to be aborted have none."""
    engine, chance = llm.llm_engine, random.Random(seed)
    waiting, done, step = list(enumerate(requests)), {}, 0
    leaving: dict[str, int] = {}
    while waiting or engine.has_unfinished_requests():
        while waiting and chance.random() < 0.4:
            number, request = waiting.pop(0)
            prompt = {"prompt_token_ids": request["prompt"]}
            engine.add_request(str(number), prompt, parameters(request))
            if request.get("aborted_after"):
                leaving[str(number)] = step + request["aborted_after"]
        for name in [name for name, at in leaving.items() if at <= step]:
            engine.abort_request([name])
            del leaving[name]
        for output in engine.step():
            if output.finished and output.outputs[0].finish_reason != "abort":
                done[output.request_id.partition("-")[0]] = answer_of(output.outputs[0])
        step += 1
    return {"answers": done, "steps": step}


def preemptions(llm: Any) -> int:
    """How often requests were put back, as the engine counts it."""
    for metric in llm.get_metrics():
        if metric.name == "vllm:num_preemptions":
            return int(metric.value)
    return 0


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job."""
    from vllm import LLM

    from mav.vllm import engine_args

    arguments = engine_args(job["head"], job["base"], **job.get("options", {}))
    try:
        llm = LLM(**{**SMALL, **arguments, **job.get("engine", {})})
    except Exception as error:
        if not job.get("refused"):
            raise
        return {"refused": f"{type(error).__name__}: {error}"}
    result: dict[str, Any] = {}
    if "rounds" in job:
        result["rounds"] = in_rounds(llm, job["rounds"])
    if "joining" in job:
        result.update(at_random(llm, job["joining"], job["seed"]))
        result["preemptions"] = preemptions(llm)
    return result


if __name__ == "__main__":
    told, written = map(Path, sys.argv[1:])
    written.write_text(json.dumps(main(json.loads(told.read_text()))))
