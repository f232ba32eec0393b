"""What a tuned policy makes of held-out pairs, measured as `mav evaluate` measures a head.

The final states of base and policy at the positions that predict response tokens are computed once
each; all else follows from them and the output embedding, which no method changes.

Shape legend: P pairs, N response tokens (chosen, then rejected), H hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.packing import ForwardBatch, batches_by_length, shared_prompt_batch
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.preferences.tokenization import TokenizedPairs
from mav.pipeline.runtime.progress import progress_bar

Combine = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities of the policy [N, V] from those of base and tuned model."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Figures of P pairs, each float64 [P].

    Attributes:
        chosen: log pi(w) of the policy that decodes.
        rejected: log pi(l).
        tuned_chosen: log-probability of w under the tuned model alone; the same as `chosen` where
            the tuned model is the policy.
        tuned_rejected: The same of l.
        base_chosen: log pi_base(w).
        base_rejected: log pi_base(l).
        kl: Mean KL(pi || pi_base) over the tokens of both answers, in nats.
    """

    chosen: Tensor
    rejected: Tensor
    tuned_chosen: Tensor
    tuned_rejected: Tensor
    base_chosen: Tensor
    base_rejected: Tensor
    kl: Tensor


def tuned_alone(_: Tensor, tuned: Tensor) -> Tensor:
    """The policy of a fine-tuned model: the base plays no part."""
    return tuned


def pad_width(batch: ForwardBatch, multiple: int) -> ForwardBatch:
    """Widen a batch of `shared_prompt_batch` to a multiple, so that few kernels are built."""
    width = batch.inputs["input_ids"].shape[1]
    more = -width % multiple
    if not more:
        return batch
    pad = torch.nn.functional.pad
    mask = batch.inputs["attention_mask"]
    hidden = torch.finfo(mask.dtype).min
    return ForwardBatch(
        inputs={
            "input_ids": pad(batch.inputs["input_ids"], (0, more)),
            "position_ids": pad(batch.inputs["position_ids"], (0, more)),
            "attention_mask": pad(mask, (0, more, 0, more), value=hidden),
        },
        predict=batch.predict // width * (width + more) + batch.predict % width,
        labels=batch.labels,
    )


@torch.inference_mode()
def final_states(
    model: BaseModel,
    pairs: TokenizedPairs,
    chosen: Sequence[int],
    *,
    batch_tokens: int = 2048,
    multiple: int = 64,
) -> list[Tensor]:
    """Return, for each pair, the final states [N, H] that predict its response tokens."""
    found: dict[int, Tensor] = {}
    lengths = pairs.response_length.sum(axis=1)
    shared = pairs.shared_length[list(chosen)]
    with progress_bar(len(chosen), "Running the model", "pair") as bar:
        for places in batches_by_length(range(len(chosen)), shared, batch_tokens):
            members = [chosen[place] for place in places]
            batch = pad_width(shared_prompt_batch(pairs, members, model.dtype), multiple)
            output = model.decoder(**batch.inputs, use_cache=False).last_hidden_state
            states = output.flatten(0, 1).index_select(0, batch.predict)
            pieces = states.split([int(lengths[pair]) for pair in members])
            found |= dict(zip(members, pieces, strict=True))
            bar.update(len(members))
    return [found[pair] for pair in chosen]


@torch.inference_mode()
def score_pairs(
    unembedding: Unembedding,
    pairs: TokenizedPairs,
    chosen: Sequence[int],
    base_states: Sequence[Tensor],
    tuned_states: Sequence[Tensor],
    combine: Combine,
) -> Scores:
    """Score pairs from the final states of base and tuned model."""
    rows = []
    with progress_bar(len(chosen), "Scoring", "pair") as bar:
        for pair, base_NH, tuned_NH in zip(chosen, base_states, tuned_states, strict=True):
            _, *answers = pairs.parts(pair)
            labels = torch.cat([torch.from_numpy(answer).long() for answer in answers])[:, None]
            base_NV = unembedding(base_NH).log_softmax(-1)
            tuned_NV = unembedding(tuned_NH).log_softmax(-1)
            policy_NV = combine(base_NV, tuned_NV)
            kl = (policy_NV.exp() * (policy_NV - base_NV)).sum(-1).double().mean()
            sums = [
                part.sum()
                for values in (policy_NV, tuned_NV, base_NV)
                for part in torch.split(
                    values.gather(-1, labels)[:, 0].double(), [*map(len, answers)]
                )
            ]
            rows.append(torch.stack([*sums, kl]))
            bar.update()
    table = torch.stack(rows, dim=1)
    return Scores(
        chosen=table[0],
        rejected=table[1],
        tuned_chosen=table[2],
        tuned_rejected=table[3],
        base_chosen=table[4],
        base_rejected=table[5],
        kl=table[6],
    )
