"""Greedy decoding, one prompt at a time: seconds per token and memory, of every method.

All run transformers' `generate()` with a KV cache and the same stopping rules; the autoregressive
reward model rides along as a logits processor with a cache of its own. Each prompt's time includes
reading it. Memory is that of a process of its own: resident before decoding, and its peak during.
"""

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from benchmarks.resident import forget_peak, peak_bytes, resident_bytes
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.preferences.transcripts import HUMAN

NEW_TOKENS: Final = 64
PROMPTS: Final = 7
"""How many held-out prompts are answered."""
_FEWEST: Final = 16

Decode = Callable[[str], tuple[int, float]]
"""Answers a prompt; returns new tokens and seconds."""


class BesideReward(LogitsProcessor):  # type: ignore[misc]
    """Adds log pi_r / beta to the base's log-probabilities, with one more pass per token."""

    def __init__(self, reward: BaseModel, beta: float) -> None:
        """Take a reward model; use the processor for one generation only."""
        self._model, self._beta = reward.model, beta
        self._cache = DynamicCache()
        self._seen = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the policy's log-probabilities [1, V], up to a constant."""
        output = self._model(
            input_ids=input_ids[:, self._seen :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._seen = input_ids.shape[1]
        reward: Tensor = output.logits[:, -1].float().log_softmax(-1)
        return scores.float().log_softmax(-1) + reward / self._beta


def plain_decoder(base: BaseModel, processor: Callable[[], Any] | None = None) -> Decode:
    """Decode with a model alone, or with a logits processor made anew for each prompt."""
    tokenizer = base.tokenizer
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        stop_strings=[HUMAN],
    )

    def decode(prompt: str) -> tuple[int, float]:
        inputs = tokenizer(prompt, return_tensors="pt")
        started = perf_counter()
        found = base.model.generate(
            **inputs,
            generation_config=config,
            tokenizer=tokenizer,
            logits_processor=LogitsProcessorList([processor()] if processor else []),
        )
        return found.shape[1] - inputs["input_ids"].shape[1], perf_counter() - started

    return decode


def mav_decoder(mav: MAVInference, alpha: float) -> Decode:
    """Decode with a head."""

    def decode(prompt: str) -> tuple[int, float]:
        found = mav.generate(prompt, alpha, GenerationOptions(max_new_tokens=NEW_TOKENS))
        return len(found.tokens), found.seconds

    return decode


@torch.inference_mode()
def measure(decode: Decode, prompts: Sequence[str]) -> dict[str, float]:
    """Return the median of seconds per token over prompts, and memory in bytes.

    Answers of fewer than 16 tokens are left out: reading the prompt is most of their time.
    """
    decode(prompts[0])
    resident = resident_bytes()
    forget_peak()
    found = [decode(prompt) for prompt in prompts]
    long = [seconds / tokens for tokens, seconds in found if tokens >= _FEWEST]
    if not long:
        long = [seconds / tokens for tokens, seconds in found]
    return {
        "seconds_per_token": statistics.median(long),
        "answers": len(long),
        "tokens": sum(tokens for tokens, _ in found),
        "resident_bytes": resident,
        "peak_bytes": peak_bytes(),
    }


def weight_bytes(*models: torch.nn.Module) -> int:
    """Bytes of the parameters of models, each counted once; of quantized ones codes and scales."""
    parameters = [tensor for model in models for p in model.parameters() for tensor in _parts(p)]
    stored = {tensor.data_ptr(): tensor for tensor in parameters}
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())


def _parts(tensor: Any) -> list[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]
