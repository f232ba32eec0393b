"""What base and heads say of requests, by MAV's own decoding and by plain passes.

A program of its own, as vLLM changes torch and transformers in the process it runs in:
`python -m tests.support.engine.reference JOB RESULT`, both JSON. Of a list of jobs it gives a list.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.generate import decode
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.engine.slots import alphas_at


@torch.no_grad()
def log_probabilities(
    mav: MAVInference, plain: Any, prompt: list[int], new: list[int], alpha: Any
) -> Any:
    """Those of the whole vocabulary before each new token, from one pass without hooks."""
    text = torch.tensor([prompt + new[:-1]])
    output = plain.model(text, output_hidden_states=True, use_cache=False)
    aligned = mav.joined.aligned
    at = slice(len(prompt) - 1, None)
    states = torch.stack([output.hidden_states[layer][0, at] for layer in aligned.layers], dim=-2)
    strength = as_strength(alpha, mav.head_names)
    alphas = torch.tensor([alphas_at(strength, token) for token in range(len(new))])
    shift, added = torch.zeros(()), torch.zeros(())
    for number, head in enumerate(aligned.heads):
        part = alphas[:, number, None] * head(states)
        if head.config.acts_on_state:
            shift = shift + part
        else:
            added = added + part
    last = output.hidden_states[-1][0, at]
    return (plain.unembedding()(last + shift) + added).log_softmax(-1)


def rounded(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Inputs of a layer as they are where activations have 8 bits, with a scale for each token."""
    (given,) = inputs
    low, high = given.amin(-1, keepdim=True), given.amax(-1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    codes = ((given / scale).round() + zero).clamp(-128, 127)
    return ((codes - zero) * scale,)


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the response and the log-probabilities of each request."""
    heads: Any = job["heads"]
    mav = MAVInference(heads, job["base"], dtype="float32", device="cpu")
    plain = load_base(job["base"], dtype="float32", device="cpu")
    if job.get("rounds_inputs"):
        for name, layer in plain.model.named_modules():
            if name.endswith("_proj"):
                layer.register_forward_pre_hook(rounded)
    answers = []
    for request in job["requests"]:
        alpha, prompt = request["alpha"], request["prompt"]
        options = GenerationOptions(
            max_new_tokens=request["max_tokens"], num_beams=request.get("num_beams", 1)
        )
        strength = as_strength(alpha, mav.head_names)
        found = request.get("forced")
        if found is None:
            (found,), _ = decode(mav.joined, [prompt], [strength], options)
        logprobs = log_probabilities(mav, plain, prompt, found, alpha)
        answers.append({"tokens": found, "logprobs": logprobs.tolist()})
    return answers


if __name__ == "__main__":
    told, result = map(Path, sys.argv[1:])
    asked = json.loads(told.read_text())
    answers = [main(job) for job in asked] if isinstance(asked, list) else main(asked)
    result.write_text(json.dumps(answers))
