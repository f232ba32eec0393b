"""The work of the comparison in pieces, each run in a process of its own and written when done."""

import os
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.baselines import dpo, genarm, mav
from benchmarks.baselines.job import Job, cache_of
from benchmarks.baselines.lora import Trained, in_float32, merged
from benchmarks.baselines.results import per_pair, read_result, write_result
from benchmarks.baselines.scoring import Combine, Scores, final_states, score_pairs, tuned_alone
from benchmarks.baselines.split import Split, load_split
from benchmarks.synthetic import log_to_stderr, say
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel


def run_job(job: Job) -> None:
    """Do a job and write its result; for a process of its own."""
    os.dup2(2, 1)  # libraries print progress where only the answer belongs
    log_to_stderr()
    actions = {
        "base": _base,
        "reference": _reference,
        "extract": _extract,
        "dpo-lora": _lora,
        "genarm": _lora,
        "mav": _mav,
        "decoding": _decoding,
    }
    values = actions[job.kind](job)
    head = {"row": job.row, "method": job.kind, "seed": job.seed, "settings": job.settings}
    write_result(job.result, head | values)


def _load(job: Job) -> tuple[BaseModel, Split]:
    base = load_base(job.data.base_model, device="cpu")
    return base, load_split(job.data, base.tokenizer)


def _base(job: Job) -> dict[str, Any]:
    """Keep the base's final states of held-out pairs, in float32, and score them."""
    base, split = _load(job)
    wide = in_float32(base)
    states = final_states(wide, split.pairs, split.held_out)
    save_file({"states": torch.cat(states)}, str(job.work / "base.safetensors"))
    scores = score_pairs(
        wide.unembedding(), split.pairs, split.held_out, states, states, tuned_alone
    )
    return {"pairs": per_pair(scores), "training_pairs": len(split.training)}


def _reference(job: Job) -> dict[str, Any]:
    """Compute the reference's log-probabilities of training pairs."""
    base, split = _load(job)
    started = perf_counter()
    states = final_states(base, split.pairs, split.training)
    scores = score_pairs(
        base.unembedding(), split.pairs, split.training, states, states, tuned_alone
    )
    found = {"chosen": scores.base_chosen, "rejected": scores.base_rejected}
    save_file(found, str(job.work / "reference.safetensors"))
    return {"seconds": perf_counter() - started}


def _extract(job: Job) -> dict[str, Any]:
    cache = cache_of(job.work, job.row)
    return mav.extract_cache(job.data, job.row, cache)


def _lora(job: Job) -> dict[str, Any]:
    assert job.lora is not None
    base, split = _load(job)
    wide = in_float32(base)
    preparation = 0.0
    combine: Combine
    if job.kind == "dpo-lora":
        preparation = _need(job.work, "reference-base")["seconds"]
        stored = load_file(str(job.work / "reference.safetensors"))
        reference = stored["chosen"], stored["rejected"]
        trained = dpo.train_dpo(base, split, reference, job.lora, job.seed, job.model)
        combine = tuned_alone
    else:
        trained = genarm.train_genarm(base, split, job.lora, job.seed, job.model)
        combine = genarm.combined(genarm.DECODING_BETA)
    say(f"{job.name}: {trained.seconds:.0f} s for {trained.steps} steps; scoring in float32")
    tuned = merged(wide, job.model, torch.float32)
    _need(job.work, "base")
    tokens = [int(n) for n in split.pairs.response_length[split.held_out].sum(axis=1)]
    base_states = load_file(str(job.work / "base.safetensors"))["states"].split(tokens)
    scores = score_pairs(
        wide.unembedding(),
        split.pairs,
        split.held_out,
        base_states,
        final_states(tuned, split.pairs, split.held_out),
        combine,
    )
    rate = split.sequence_tokens(split.training) * job.lora.epochs / trained.seconds
    return _row(trained, scores, preparation) | {"tokens_per_second": rate}


def _mav(job: Job) -> dict[str, Any]:
    assert job.variant is not None
    cache = cache_of(job.work, job.variant.layers)
    extraction = _need(job.work, f"extract-{job.variant.layers}")
    trained = mav.train_head(job.data, job.variant, cache, job.seed, job.model)
    scores = mav.score_head(job.model, cache, job.data, job.variant.alpha)
    return _row(trained, scores, extraction["seconds"])


def _row(trained: Trained, scores: Scores, preparation: float) -> dict[str, Any]:
    return {
        "training_seconds": trained.seconds,
        "training_cpu_seconds": trained.cpu_seconds,
        "preparation_seconds": preparation,
        "trainable_parameters": trained.parameters,
        "steps": trained.steps,
        "pairs": per_pair(scores),
    }


def _need(work: Path, name: str) -> dict[str, Any]:
    found = read_result(work / "results" / f"{name}.json")
    assert found is not None, f"{name} is run first"
    return found


def _decoding(job: Job) -> dict[str, Any]:
    from benchmarks.baselines import decoding

    base, split = _load(job)
    prompts = [
        base.tokenizer.decode(split.pairs.parts(pair)[0])
        for pair in split.held_out[: decoding.PROMPTS]
    ]
    trained = job.work / "models" / f"{job.row}-seed{job.seed}"
    plain = decoding.weight_bytes(base.model)
    if job.variant is not None:
        from mav.pipeline.decoding.inference import MAVInference

        joined = MAVInference(str(trained / "last"), base)
        weights = decoding.weight_bytes(base.model, joined.head)
        decode = decoding.mav_decoder(joined, job.variant.alpha)
    elif job.row == "genarm":
        reward = merged(base, trained, base.dtype)
        weights = decoding.weight_bytes(base.model, reward.model)
        decode = decoding.plain_decoder(
            base, lambda: decoding.BesideReward(reward, genarm.DECODING_BETA)
        )
    else:
        tuned = merged(base, trained, base.dtype) if job.row == "dpo-lora" else base
        del base
        weights, decode = decoding.weight_bytes(tuned.model), decoding.plain_decoder(tuned)
    return decoding.measure(decode, prompts) | {"extra_weight_bytes": weights - plain}
