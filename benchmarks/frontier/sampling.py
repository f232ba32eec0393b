"""Samples answers at temperature 1, and measures how far they are from the base.

The KL of an answer y to a prompt x is the sum over its own tokens, the one that ends it included,

    sum_t KL(pi(. | x, y_<t) || pi_base(. | x, y_<t)),

over the whole vocabulary. Its mean over answers that the policy samples is the KL of the policy's
sequences: an exact sum in place of the noisy log-ratio of what happened to be sampled.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from benchmarks.frontier.policies import Policy, Reader, padded
from mav.pipeline.decoding.generate import positions_of
from mav.pipeline.runtime.progress import progress_bar

Tokens = list[int]
_AT_ONCE: Final = 200
_KL_AT_ONCE: Final = 8


@torch.inference_mode()
def sample(policy: Policy, prompts: Sequence[str], new_tokens: int, seed: int) -> list[Tokens]:
    """Return the tokens of one answer to each prompt, the one that ended it included.

    Batches draw from one generator in the same order, so that policies with the same seed share
    their noise as long as they agree.

    Args:
        policy: The policy.
        prompts: The prompts; a prompt may be there several times.
        new_tokens: Most tokens of an answer.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    answers: list[Tokens] = []
    with policy.active(), progress_bar(len(prompts), "Sampling", "answer") as bar:
        for first in range(0, len(prompts), _AT_ONCE):
            rows = [policy.tokens(prompt) for prompt in prompts[first : first + _AT_ONCE]]
            answers += _sample_batch(policy, rows, new_tokens, generator)
            bar.update(len(rows))
    return answers


def _sample_batch(
    policy: Policy, rows: list[Tokens], new_tokens: int, generator: torch.Generator
) -> list[Tokens]:
    reader = policy.reader(keeps_cache=True)
    ids, mask = padded(rows, left=True)
    positions = positions_of(mask, mask.shape[1])
    end = policy.form.end_token
    drawn: list[Tensor] = []
    running = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(new_tokens):
        keep = torch.tensor([ids.shape[1] - 1])
        probabilities = reader(ids, mask, positions, keep)[:, -1].softmax(-1)
        ids = torch.multinomial(probabilities, 1, generator=generator)
        drawn.append(ids[:, 0])
        running &= ids[:, 0] != end
        if not running.any():
            break
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [_until(end, row) for row in torch.stack(drawn, dim=1).tolist()]


def _until(end: int, row: Tokens) -> Tokens:
    return row[: row.index(end) + 1] if end in row else row


@torch.inference_mode()
def sequence_kl(
    policy: Policy, base: Policy, prompts: Sequence[str], answers: Sequence[Tokens]
) -> Tensor:
    """Return the KL of each answer in nats, float64 [answers]; see above."""
    found: list[Tensor] = []
    for _, mask_BT, log_BTV, base_BTV in _read_both(policy, base, prompts, answers, "Measuring KL"):
        kl_BT = (log_BTV.exp() * (log_BTV - base_BTV)).sum(-1, dtype=torch.float64)
        found.append((kl_BT * mask_BT).sum(-1))
    return torch.cat(found)


@torch.inference_mode()
def centred_gains(
    policy: Policy, base: Policy, prompts: Sequence[str], answers: Sequence[Tokens]
) -> Tensor:
    """Return what a policy gains over the base at an answer's tokens, float64 [answers].

    The sum over tokens of the log-ratio less its mean over the base's next tokens, which is
    -KL(pi_base || pi): 0 in the mean over answers that the base samples.
    """
    found: list[Tensor] = []
    for labels_BT, mask_BT, log_BTV, base_BTV in _read_both(
        policy, base, prompts, answers, "Scoring"
    ):
        ratio_BTV = log_BTV.sub_(base_BTV)
        gain_BT = ratio_BTV.gather(-1, labels_BT[..., None])[..., 0].double()
        gain_BT -= ratio_BTV.mul_(base_BTV.exp_()).sum(-1, dtype=torch.float64)
        found.append((gain_BT * mask_BT).sum(-1))
    return torch.cat(found)


def _read_both(
    policy: Policy, base: Policy, prompts: Sequence[str], answers: Sequence[Tokens], doing: str
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield tokens and mask [B, T] of some answers, and log-probabilities [B, T, V] of both."""
    with progress_bar(len(prompts), doing, "answer") as bar:
        for first in range(0, len(prompts), _KL_AT_ONCE):
            some = slice(first, first + _KL_AT_ONCE)
            logs = []
            for one in (policy, base):
                with one.active():
                    log_BTV, labels_BT, mask_BT = _forced(one, prompts[some], answers[some])
                    logs.append(log_BTV)
            yield labels_BT, mask_BT, logs[0], logs[1]
            bar.update(len(answers[some]))


def _forced(
    policy: Policy, prompts: Sequence[str], answers: Sequence[Tokens]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities [B, T, V] at an answer's tokens, these, and which of T there are."""
    before, before_mask = padded([policy.tokens(prompt) for prompt in prompts], left=True)
    behind, behind_mask = padded(answers, left=False)
    ids = torch.cat([before, behind], dim=1)[:, :-1]
    mask = torch.cat([before_mask, behind_mask], dim=1)[:, :-1]
    keep = torch.arange(before.shape[1] - 1, ids.shape[1])
    reader: Reader = policy.reader(keeps_cache=False)
    logits = reader(ids, mask, positions_of(mask, mask.shape[1]), keep)
    return logits.log_softmax(-1), behind, behind_mask


@torch.inference_mode()
def answer_logprobs(policy: Policy, prompts: Sequence[str], answers: Sequence[Tokens]) -> Tensor:
    """Return the log-probability of each answer, float64 [answers]."""
    found: list[Tensor] = []
    with policy.active(), progress_bar(len(prompts), "Ranking", "answer") as bar:
        for first in range(0, len(prompts), _KL_AT_ONCE):
            some = slice(first, first + _KL_AT_ONCE)
            log_BTV, labels_BT, mask_BT = _forced(policy, prompts[some], answers[some])
            log_BT = log_BTV.gather(-1, labels_BT[..., None])[..., 0].double()
            found.append((log_BT * mask_BT).sum(-1))
            bar.update(len(answers[some]))
    return torch.cat(found)
