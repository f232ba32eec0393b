"""What a head makes of each pair of a cache.

Shape legend: A alphas, P pairs, C tokens of a chunk, V vocabulary.
"""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_schema.reader import CacheReader
from pipeline.aligned_logprobs import CHUNK_ELEMENTS
from pipeline.batch import Batch, CachedBase, collate
from pipeline.head import AlignmentHead
from pipeline.progress import progress_bar

_PAIRS_AT_ONCE: Final = 8


@torch.inference_mode()
def tally_pairs(
    head: AlignmentHead,
    reader: CacheReader,
    wanted: list[bool],
    alphas: Sequence[float],
    device: torch.device,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Score pairs of a cache, in its order, at several strengths.

    Args:
        head: The head.
        reader: The cache.
        wanted: [pairs], which of them.
        alphas: Strengths.
        device: Where to compute.

    Returns:
        For each alpha what its answers gain over the base, chosen and rejected [P, 2], their
        log-probabilities [P, 2], and for each pair the mean over its tokens of KL(aligned || base)
        [P] and of ||alpha * a|| [P]; float64, on the CPU.
    """
    base = CachedBase(reader, device)
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in alphas]
    with progress_bar(sum(wanted), "Evaluating", "pair") as bar:
        for number in range(reader.plan.blocks):
            if not any(wanted[pair] for pair in reader.plan.pairs_of(number)):
                continue
            block = reader.read_block(number)
            inside = [(block, pair - block.pairs.start) for pair in block.pairs if wanted[pair]]
            for at in range(0, len(inside), _PAIRS_AT_ONCE):
                some = inside[at : at + _PAIRS_AT_ONCE]
                batch = collate(some, reader.manifest, len(some)).to(device)
                for tally, result in zip(found, _score(head, batch, base, alphas), strict=True):
                    tally.append(result)
                bar.update(len(some))
    return [
        (parts[0], parts[1], parts[2], parts[3])
        for tally in found
        for parts in [[torch.cat(column) for column in zip(*tally, strict=True)]]
    ]


def _score(
    head: AlignmentHead, batch: Batch, base: CachedBase, alphas: Sequence[float]
) -> list[tuple[Tensor, ...]]:
    logits = base.logits(batch)
    labels = batch.labels.long()
    count = len(labels)
    logp = torch.empty(len(alphas), count, dtype=torch.float64, device=labels.device)
    kl, base_logp = torch.empty_like(logp), torch.empty_like(logp[0])
    norm = torch.empty_like(base_logp)
    # bfloat16 states gain nothing from wider products, as in training.
    narrow = batch.states.dtype == torch.bfloat16
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=narrow):
        features = head.features(batch.states)
    at_once = max(1, CHUNK_ELEMENTS // head.config.vocab_size)
    for start in range(0, count, at_once):
        piece = slice(start, min(count, start + at_once))
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=narrow):
            vector_CV = head.project(features[piece]).float()
        base_CV = logits.chunk(piece.start, piece.stop)
        base_log_CV = base_CV.log_softmax(-1)
        norm[piece] = torch.linalg.vector_norm(vector_CV, dim=-1).double()
        picked = labels[piece, None]
        base_logp[piece] = base_log_CV.gather(-1, picked)[:, 0].double()
        for number, alpha in enumerate(alphas):
            log_CV = torch.log_softmax(base_CV + alpha * vector_CV, -1)
            logp[number, piece] = log_CV.gather(-1, picked)[:, 0].double()
            kl[number, piece] = (
                F.kl_div(base_log_CV, log_CV, reduction="none", log_target=True).sum(-1).double()
            )
    lengths = (batch.offsets[2::2] - batch.offsets[:-1:2]).double()
    base_sums = torch.stack(batch.response_sums(base_logp), dim=-1)
    results = []
    for number, alpha in enumerate(alphas):
        sums = torch.stack(batch.response_sums(logp[number]), dim=-1)
        kl_sum = torch.add(*batch.response_sums(kl[number]))
        norm_sum = torch.add(*batch.response_sums(norm * abs(alpha)))
        results.append(
            tuple(t.cpu() for t in (sums - base_sums, sums, kl_sum / lengths, norm_sum / lengths))
        )
    return results
