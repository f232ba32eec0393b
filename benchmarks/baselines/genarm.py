r"""GenARM: an autoregressive reward model, and decoding with it beside the frozen base.

Source: Xu et al. 2024 (ICLR 2025), "GenARM: Reward Guided Generation with Autoregressive Reward
Model for Test-Time Alignment". The reward of an answer is log pi_r(y), a sum over tokens, so that

    loss     -log sigmoid(beta_r * (log pi_r(w) - log pi_r(l))),    pi_r the base with adapters,
    policy   log pi = log pi_base + (1 / beta) * log pi_r + const.

Settings are those of the authors' script for HH-RLHF (`training_trl/train_arm_llama_HH.sh` and
`train_arm_llama.py`): beta_r 0.05, rate 5e-4, one epoch, cosine decay, weight decay 0.05; adapters
of rank 8, alpha 16, dropout 0.05, on those of the layers they name that LLaMA has (q, k, v). They
decode at 1 / beta = 1. Two differ, as their 3,500 steps of 32 pairs are some 80 of 16 here:
the batch, and the warm-up, a tenth of the steps rather than 100 of them.

The loop is our own. A pair is one sequence whose answers do not see each other, so that the prompt
runs once; TRL runs it twice. Compare training times with that in mind.
"""

import importlib
import math
import random
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.lora import (
    LoraSettings,
    Trained,
    lora_config,
    narrow_inputs,
    save_adapter,
    trainable_parameters,
)
from benchmarks.baselines.scoring import Combine, pad_width
from benchmarks.baselines.split import Split
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.packing import shared_prompt_batch
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.preferences.tokenization import TokenizedPairs
from mav.pipeline.runtime.progress import progress_bar

GENARM: Final = LoraSettings(
    rank=8,
    alpha=16,
    dropout=0.05,
    targets=("q_proj", "k_proj", "v_proj"),
    beta=0.05,
    learning_rate=5e-4,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.05,
)
DECODING_BETA: Final = 1.0


def combined(beta: float) -> Combine:
    """Return the policy of decoding: base and reward model, normalised."""

    def combine(base_NV: Tensor, reward_NV: Tensor) -> Tensor:
        return (base_NV + reward_NV / beta).log_softmax(-1)

    return combine


def train_genarm(
    base: BaseModel, split: Split, settings: LoraSettings, seed: int, folder: Path
) -> Trained:
    """Train adapters and write them to a folder; the base's model is wrapped, and lost."""
    peft: Any = importlib.import_module("peft")
    torch.manual_seed(seed)
    unembedding = base.unembedding()
    model = peft.get_peft_model(base.model, lora_config(settings))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=settings.weight_decay)
    orders = random.Random(seed)  # noqa: S311
    pairs = len(split.training) * settings.epochs
    steps = -(-len(split.training) // settings.batch_pairs) * settings.epochs
    model.train()
    started, before, step = perf_counter(), process_time(), 0
    with narrow_inputs(model), progress_bar(pairs, "GenARM", "pair") as bar:
        for _ in range(settings.epochs):
            order = orders.sample(split.training, len(split.training))
            for first in range(0, len(order), settings.batch_pairs):
                chosen = order[first : first + settings.batch_pairs]
                chosen.sort(key=lambda pair: int(split.pairs.shared_length[pair]))
                for group in optimizer.param_groups:
                    group["lr"] = cosine_rate(step, steps, settings)
                loss = 0.0
                for at in range(0, len(chosen), settings.micro_pairs):
                    micro = chosen[at : at + settings.micro_pairs]
                    chosen_logp, rejected_logp = answer_logprobs(
                        base, unembedding, split.pairs, micro, settings.multiple
                    )
                    losses = reward_losses(chosen_logp, rejected_logp, settings.beta)
                    part = losses.sum() / len(chosen)
                    part.backward()  # type: ignore[no-untyped-call]
                    loss += float(part)
                torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                bar.update(len(chosen))
                bar.set_postfix(loss=f"{loss:.4f}")
    seconds, cpu_seconds = perf_counter() - started, process_time() - before
    save_adapter(model, folder)
    return Trained(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        parameters=trainable_parameters(model),
        steps=steps,
    )


def reward_losses(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Return the loss of each pair from its log-probabilities [P]."""
    return -F.logsigmoid(beta * (chosen - rejected))


def cosine_rate(step: int, steps: int, settings: LoraSettings) -> float:
    """Return the rate of a step counted from 0: linear warm-up, then half a cosine to zero."""
    warmup = int(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def answer_logprobs(
    base: BaseModel,
    unembedding: Unembedding,
    pairs: TokenizedPairs,
    chosen: list[int],
    multiple: int,
) -> tuple[Tensor, Tensor]:
    """Return log pi_r of chosen and rejected answers [P], with gradients."""
    batch = pad_width(shared_prompt_batch(pairs, chosen, base.dtype), multiple)
    with torch.autocast(base.device.type, torch.bfloat16, enabled=base.dtype == torch.bfloat16):
        # Adapters sit in the base's own layers, so its decoder is the tuned one.
        output: Any = base.decoder(**batch.inputs, use_cache=False)
        states = output.last_hidden_state.flatten(0, 1).index_select(0, batch.predict)
        logits = unembedding(states)
    logp = -F.cross_entropy(logits, torch.from_numpy(batch.labels).long(), reduction="none")
    lengths = [int(n) for n in pairs.response_length[chosen].reshape(-1)]
    sums = torch.stack([part.sum() for part in torch.split(logp, lengths)])
    return sums[0::2], sums[1::2]
