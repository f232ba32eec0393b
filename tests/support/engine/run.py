"""Requests through an engine of vLLM with heads in it.

A program of its own: `python -m tests.support.engine.run JOB RESULT`, both JSON. A job has `head`,
`base`, `options` of `engine_args`, `engine`, further arguments of `vllm.LLM`, and `rounds`, which
are lists of requests that are sent together. With `joining` requests join, and some are aborted,
between steps; with `beams` vLLM searches. Of a list of jobs each has an engine of its own, one
after the other, which saves the start of a process; the result of one that fails is its traceback.
"""

import gc
import json
import random
import sys
import traceback
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


def beams_of(llm: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The beams that vLLM's own search finds from a prompt, the best one first."""
    from vllm.sampling_params import BeamSearchParams

    width, most = asked["width"], asked["max_tokens"]
    params = BeamSearchParams(beam_width=width, max_tokens=most, ignore_eos=True)
    (found,) = llm.beam_search([{"prompt_token_ids": asked["prompt"]}], params)
    length = len(asked["prompt"])
    return [
        {"tokens": beam.tokens[length:], "logprob": beam.cum_logprob} for beam in found.sequences
    ]


def preemptions(llm: Any) -> int:
    """How often requests were put back, as the engine counts it."""
    for metric in llm.get_metrics():
        if metric.name == "vllm:num_preemptions":
            return int(metric.value)
    return 0


def arguments_of(job: dict[str, Any]) -> dict[str, Any]:
    """What the engine of a job is told."""
    from mav.vllm import engine_args

    return engine_args(job["head"], job["base"], **job.get("options", {}))


def class_in(arguments: dict[str, Any]) -> str:
    """The class of vLLM's that a model runs in."""
    from mav.pipeline.engine.models import steered_class
    from mav.pipeline.engine.names import engine_architecture

    (name,) = arguments["hf_overrides"]["architectures"]
    return steered_class(name.removeprefix(engine_architecture(""))).__mro__[1].__name__


def main(job: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a job."""
    from vllm import LLM

    try:
        llm = LLM(**{**SMALL, **arguments, **job.get("engine", {})})
    except Exception as error:
        if not job.get("refused"):
            raise
        return {"refused": f"{type(error).__name__}: {error}"}
    result: dict[str, Any] = {"class": class_in(arguments)}
    if "rounds" in job:
        result["rounds"] = in_rounds(llm, job["rounds"])
    if "beams" in job:
        result["beams"] = beams_of(llm, job["beams"])
    if "joining" in job:
        result.update(at_random(llm, job["joining"], job["seed"]))
        result["preemptions"] = preemptions(llm)
    llm.llm_engine.engine_core.shutdown()
    return result


def attempted(job: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one of several jobs, and clear away so that another engine can start here."""
    from vllm.distributed import cleanup_dist_env_and_memory

    try:
        return main(job, arguments)
    except Exception:
        return {"failed": traceback.format_exc()}
    finally:
        gc.collect()
        cleanup_dist_env_and_memory()


def inspect_here() -> None:
    """Have vLLM look at a model's class in this process.

    It would start another one for each class, which takes longer than to load the class.
    """
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()


if __name__ == "__main__":
    told, written = map(Path, sys.argv[1:])
    asked = json.loads(told.read_text())
    if isinstance(asked, list):
        inspect_here()
        # All of them first: an engine changes transformers' classes, which these look at.
        prepared = [arguments_of(job) for job in asked]
        results = []
        for job, arguments in zip(asked, prepared, strict=True):
            results.append(attempted(job, arguments))
            # Each time, so that one that ends the process is known.
            written.write_text(json.dumps(results))
    else:
        written.write_text(json.dumps(main(asked, arguments_of(asked))))
