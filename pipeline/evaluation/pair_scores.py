"""Log-probabilities, KL and vector norms of each pair of a cache under a head."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.cache_schema.errors import UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.mixture import Mixture
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.base_logits import capped
from mav.pipeline.ops.tiling import CHUNK_ELEMENTS
from mav.pipeline.runtime.compute_dtype import plain_name
from mav.pipeline.runtime.progress import progress_bar

_PAIRS_AT_ONCE: Final = 8


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What a head does to each of P pairs at one strength; float64, on the CPU.

    Attributes:
        gains: log pi(y) - log pi_base(y) of the chosen and the rejected response y, [P, 2].
        logps: log pi(y) of both, [P, 2].
        kl: Mean KL(aligned || base) over the pair's response tokens, in nats, [P].
        vector_norm: Mean of ||alpha * a|| over the pair's response tokens, [P].
    """

    gains: Tensor
    logps: Tensor
    kl: Tensor
    vector_norm: Tensor

    @staticmethod
    def concatenate(parts: Sequence["PairScores"]) -> "PairScores":
        """Return the scores of all pairs of several parts, in their order."""
        names = [field.name for field in dataclasses.fields(PairScores)]
        return PairScores(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        )


@torch.inference_mode()
def score_pairs(
    head: AlignmentHead | Mixture,
    reader: CacheReader,
    wanted: list[bool],
    alphas: Sequence[float],
    device: torch.device,
    dtype: torch.dtype,
) -> list[PairScores]:
    """Score pairs of a cache, in its order, at several strengths.

    Args:
        head: The head, or several with weights, which `alphas` multiply.
        reader: The cache.
        wanted: [pairs], which of them; at least one.
        alphas: Strengths.
        device: Where to compute.
        dtype: Type of the products.

    Returns:
        One for each alpha.
    """
    base = CachedBase(reader, device, dtype)
    parts: list[list[PairScores]] = [[] for _ in alphas]
    with progress_bar(sum(wanted), "Evaluating", "pair") as bar:
        for number in range(reader.plan.blocks):
            if not any(wanted[pair] for pair in reader.plan.pairs_of(number)):
                continue
            block = reader.read_block(number)
            inside = [(block, pair - block.pairs.start) for pair in block.pairs if wanted[pair]]
            for at in range(0, len(inside), _PAIRS_AT_ONCE):
                some = inside[at : at + _PAIRS_AT_ONCE]
                batch = collate(some, reader.manifest, len(some)).to(device)
                scores = _score(Mixture.of(head), batch, base, alphas, dtype)
                for of_alpha, part in zip(parts, scores, strict=True):
                    of_alpha.append(part)
                bar.update(len(some))
    return [PairScores.concatenate(of_alpha) for of_alpha in parts]


def _score(
    mixture: Mixture,
    batch: Batch,
    base: CachedBase,
    alphas: Sequence[float],
    dtype: torch.dtype,
) -> list[PairScores]:
    labels = batch.labels.long()
    device = labels.device
    with _autocast(dtype, device):
        added = mixture.additions(batch.states, base.logits(batch))
    if not added.is_finite:
        raise UsageError(
            f"dtype: got {plain_name(dtype)}, in which the head's features of stored states are "
            f"not finite, expected bfloat16 or float32"
        )
    # Each value comes from one float32 row; sums over tokens are taken on the CPU in float64,
    # which not every device has.
    parts: list[Tensor] = []
    at_once = max(1, CHUNK_ELEMENTS // mixture.vocab_size)
    for start in range(0, len(labels), at_once):
        piece = slice(start, min(len(labels), start + at_once))
        with _autocast(dtype, device):
            inner, outer = added.vectors(piece)
        base_CV = added.base.chunk(piece.start, piece.stop)
        base_log_CV = capped(base_CV, added.softcap).log_softmax(-1)
        picked = labels[piece, None]
        values = [
            torch.linalg.vector_norm(_sum(inner, outer), dim=-1),
            base_log_CV.gather(-1, picked)[:, 0],
        ]
        for alpha in alphas:
            log_CV = added.logits(base_CV, alpha, inner, outer).log_softmax(-1)
            values += [
                log_CV.gather(-1, picked)[:, 0],
                F.kl_div(base_log_CV, log_CV, reduction="none", log_target=True).sum(-1),
            ]
        parts.append(torch.stack(values).cpu())
    norm, base_logp, *of_alphas = torch.cat(parts, dim=-1).double()
    sums_of = dataclasses.replace(batch, rows={}, offsets=batch.offsets.cpu()).response_sums
    lengths = batch.offsets.cpu()
    lengths = (lengths[2::2] - lengths[:-1:2]).double()
    base_sums = torch.stack(sums_of(base_logp), dim=-1)
    results: list[PairScores] = []
    for alpha, logp, kl in zip(alphas, of_alphas[::2], of_alphas[1::2], strict=True):
        sums = torch.stack(sums_of(logp), dim=-1)
        kl_sum, norm_sum = torch.add(*sums_of(kl)), torch.add(*sums_of(norm * abs(alpha)))
        results.append(
            PairScores(
                gains=sums - base_sums,
                logps=sums,
                kl=kl_sum / lengths,
                vector_norm=norm_sum / lengths,
            )
        )
    return results


def _sum(inner: Tensor | None, outer: Tensor | None) -> Tensor:
    if inner is None or outer is None:
        found = outer if inner is None else inner
        assert found is not None, "a mixture has heads"
        return found
    return inner + outer


def _autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    lowp = dtype != torch.float32
    return torch.autocast(device.type, dtype if lowp else torch.bfloat16, enabled=lowp)
