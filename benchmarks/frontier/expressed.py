"""How much of what DPO with LoRA changes a token-wise head can express.

The tuned model is distilled into a head over the base's cached states, by KL(dpo || base + head) at
every token of the training pairs. What is left of KL(dpo || base) on the tokens of held-out pairs
is what a head cannot have, or did not learn: 1 - KL(dpo || base + head) / KL(dpo || base).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.lora import merged
from benchmarks.baselines.scoring import final_states
from benchmarks.frontier.prompts import Part
from benchmarks.frontier.stages import World
from benchmarks.frontier.vectors import all_pairs
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.runtime.progress import progress_bar

_RATE: Final = 1e-3
_TOKENS: Final = 512
"""Tokens of a step."""


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """N tokens as the base and the tuned model see them.

    Attributes:
        states: What the head reads, [N, K, W].
        base: The base's final states, [N, H].
        tuned: The tuned model's, [N, H].
        unembedding: The output embedding of both.
    """

    states: Tensor
    base: Tensor
    tuned: Tensor
    unembedding: Unembedding

    def __len__(self) -> int:
        return len(self.base)

    def logprobs(self, some: Tensor) -> tuple[Tensor, Tensor]:
        """Return the base's logits and the tuned model's log-probabilities, [tokens, V]."""
        return self.unembedding(self.base[some]), self.unembedding(self.tuned[some]).log_softmax(-1)


def shifted(world: World, adapters: Path, part: Part) -> Shifted:
    """Return the tokens of a part's pairs."""
    split = world.split(part)
    batch = all_pairs(world.cache(part))
    # Adapters are small beside weights that bfloat16 would round them into.
    tuned = merged(world.base, adapters, torch.float32)
    found = torch.cat(final_states(tuned, split.pairs, split.held_out))
    base = torch.cat(final_states(world.wide, split.pairs, split.held_out))
    return Shifted(
        states=batch.states, base=base, tuned=found, unembedding=world.wide.unembedding()
    )


def distil(tokens: Shifted, config: HeadConfig, epochs: int, seed: int) -> AlignmentHead:
    """Return a head trained to make the tuned model of the base."""
    torch.manual_seed(seed)
    head = AlignmentHead(config)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=0.01)
    steps = -(-len(tokens) // _TOKENS) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_RATE, total_steps=steps + 1, cycle_momentum=False
    )
    with progress_bar(len(tokens) * epochs, "Distilling", "tok") as bar:
        for some in _batches(len(tokens), epochs):
            with torch.no_grad():
                base, target = tokens.logprobs(some)
            vector = head(tokens.states[some]).float()
            loss = _kl(target, (base + vector).log_softmax(-1)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            bar.update(len(some))
            bar.set_postfix(kl=f"{float(loss.detach()):.4f}")
    return head.eval()


def _batches(total: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.split(torch.randperm(total), _TOKENS)


def _kl(target: Tensor, log: Tensor) -> Tensor:
    return F.kl_div(log, target, reduction="none", log_target=True).sum(-1)


@torch.inference_mode()
def shifts(tokens: Shifted, head: AlignmentHead) -> tuple[float, float]:
    """Return the mean KL(dpo || base) and KL(dpo || base + head) of tokens, in nats."""
    sums = torch.zeros(2, dtype=torch.float64)
    for some in torch.split(torch.arange(len(tokens)), _TOKENS):
        base, target = tokens.logprobs(some)
        vector = head(tokens.states[some]).float()
        for place, logits in enumerate((base, base + vector)):
            sums[place] += _kl(target, logits.log_softmax(-1)).double().sum()
    plain, left = (sums / len(tokens)).tolist()
    return plain, left


def share_expressed(world: World, adapters: Path, seed: int) -> dict[str, Any]:
    """Distil and measure; return the share and what it is of."""
    started = process_time()
    training = shifted(world, adapters, "training")
    layers, width = training.states.shape[1:]
    config = HeadConfig(
        num_layers=layers,
        pooled_size=width,
        expansion_size=world.sizes.expansion_size,
        vocab_size=world.base.vocab_size,
        dropout=0.0,
    )
    head = distil(training, config, world.sizes.epochs, seed)
    held_out = shifted(world, adapters, "held-out")
    plain, left = shifts(held_out, head)
    return {
        "share": 1 - left / plain,
        "kl_base": plain,
        "kl_head": left,
        "training_tokens": len(training),
        "held_out_tokens": len(held_out),
        "epochs": world.sizes.epochs,
        "rate": _RATE,
        "cpu_seconds": round(process_time() - started, 1),
    }
