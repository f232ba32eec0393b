"""What a head makes of each pair of a cache.

Shape legend: A alphas, P pairs, C tokens of a chunk, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.cache_schema.errors import UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.aligned_logprobs import CHUNK_ELEMENTS
from mav.pipeline.runtime.compute_dtype import plain_name
from mav.pipeline.runtime.progress import progress_bar

_PAIRS_AT_ONCE: Final = 8


@torch.inference_mode()
def tally_pairs(
    head: AlignmentHead,
    reader: CacheReader,
    wanted: list[bool],
    alphas: Sequence[float],
    device: torch.device,
    dtype: torch.dtype,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Score pairs of a cache, in its order, at several strengths.

    Args:
        head: The head.
        reader: The cache.
        wanted: [pairs], which of them.
        alphas: Strengths.
        device: Where to compute.
        dtype: Type of the products.

    Returns:
        For each alpha what its answers gain over the base, chosen and rejected [P, 2], their
        log-probabilities [P, 2], and for each pair the mean over its tokens of KL(aligned || base)
        [P] and of ||alpha * a|| [P]; float64, on the CPU.
    """
    base = CachedBase(reader, device, dtype)
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
                scored = _score(head, batch, base, alphas, dtype)
                for tally, result in zip(found, scored, strict=True):
                    tally.append(result)
                bar.update(len(some))
    return [
        (parts[0], parts[1], parts[2], parts[3])
        for tally in found
        for parts in [[torch.cat(column) for column in zip(*tally, strict=True)]]
    ]


def _score(
    head: AlignmentHead,
    batch: Batch,
    base: CachedBase,
    alphas: Sequence[float],
    dtype: torch.dtype,
) -> list[tuple[Tensor, ...]]:
    logits = base.logits(batch)
    labels = batch.labels.long()
    device = labels.device
    with _computing_in(dtype, device):
        features = head.features(batch.states)
    if not features.isfinite().all():
        raise UsageError(
            f"--dtype {plain_name(dtype)}: the head's features of stored states are not finite in "
            f"it. Use --dtype bfloat16 or float32."
        )
    # Each value comes from one float32 row; sums over tokens are taken on the CPU in float64,
    # which not every device has.
    parts: list[Tensor] = []
    at_once = max(1, CHUNK_ELEMENTS // head.config.vocab_size)
    for start in range(0, len(labels), at_once):
        piece = slice(start, min(len(labels), start + at_once))
        with _computing_in(dtype, device):
            vector_CV = head.project(features[piece]).float()
        base_CV = logits.chunk(piece.start, piece.stop)
        base_log_CV = base_CV.log_softmax(-1)
        picked = labels[piece, None]
        found = [
            torch.linalg.vector_norm(vector_CV, dim=-1),
            base_log_CV.gather(-1, picked)[:, 0],
        ]
        for alpha in alphas:
            log_CV = torch.log_softmax(base_CV + alpha * vector_CV, -1)
            found += [
                log_CV.gather(-1, picked)[:, 0],
                F.kl_div(base_log_CV, log_CV, reduction="none", log_target=True).sum(-1),
            ]
        parts.append(torch.stack(found).cpu())
    norm, base_logp, *of_alphas = torch.cat(parts, dim=-1).double()
    sums_of = dataclasses.replace(batch, rows={}, offsets=batch.offsets.cpu()).response_sums
    lengths = batch.offsets.cpu()
    lengths = (lengths[2::2] - lengths[:-1:2]).double()
    base_sums = torch.stack(sums_of(base_logp), dim=-1)
    results: list[tuple[Tensor, ...]] = []
    for alpha, logp, kl in zip(alphas, of_alphas[::2], of_alphas[1::2], strict=True):
        sums = torch.stack(sums_of(logp), dim=-1)
        kl_sum, norm_sum = torch.add(*sums_of(kl)), torch.add(*sums_of(norm * abs(alpha)))
        results.append((sums - base_sums, sums, kl_sum / lengths, norm_sum / lengths))
    return results


def _computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    narrow = dtype != torch.float32
    return torch.autocast(device.type, dtype if narrow else torch.bfloat16, enabled=narrow)
