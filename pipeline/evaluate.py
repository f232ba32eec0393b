"""Measuring a head on a cache at several strengths, without the base model.

Shape legend: A alphas, P pairs, C tokens of a chunk, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cache_schema.errors import DataError
from cache_schema.reader import CacheReader
from pipeline.aligned_logprobs import CHUNK_ELEMENTS
from pipeline.batch import Batch, CachedBase, collate
from pipeline.belonging import require_same_features
from pipeline.devices import pick_device
from pipeline.head import AlignmentHead
from pipeline.head_files import StoredHead, load_head
from pipeline.held_out import PairSubset, Which, in_subset
from pipeline.intervals import mean_interval, wilson
from pipeline.progress import progress_bar

_PAIRS_AT_ONCE: Final = 8
_LENGTH_BINS: Final = 5

Longer = Literal["chosen", "neither", "rejected"]


@dataclass(frozen=True, kw_only=True)
class AlphaResult:
    """What a head does to the base at one strength.

    Attributes:
        alpha: The strength.
        reward_accuracy: Share of pairs whose chosen answer gained more log-probability over the
            base than the rejected one; None at alpha 0, where nothing is gained.
        reward_accuracy_interval: Its 95 % interval (Wilson).
        logp_accuracy: Share of pairs whose chosen answer is the more probable one.
        logp_accuracy_interval: Its 95 % interval (Wilson).
        margin: Mean of (gain of chosen) - (gain of rejected), in nats.
        margin_interval: Its 95 % interval; None for a single pair.
        kl_per_token: Mean over pairs of the mean KL(aligned || base) over their response tokens,
            in nats.
        kl_interval: Its 95 % interval.
        vector_norm: Mean over pairs of the mean of ||alpha * a||_2 over their response tokens.
    """

    alpha: float
    reward_accuracy: float | None
    reward_accuracy_interval: tuple[float, float] | None
    logp_accuracy: float
    logp_accuracy_interval: tuple[float, float]
    margin: float
    margin_interval: tuple[float, float] | None
    kl_per_token: float
    kl_interval: tuple[float, float] | None
    vector_norm: float


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Pairs whose answers have about as many tokens, those of both answers counted together.

    Attributes:
        fewest_tokens: Tokens of the shortest pair.
        most_tokens: Tokens of the longest pair.
        pairs: Number of pairs, at least one.
        accuracy: Their reward accuracy.
        interval: Its 95 % interval (Wilson).
    """

    fewest_tokens: int
    most_tokens: int
    pairs: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LongerGroup:
    """Pairs by which answer has more tokens; a head that learned length alone fails one group.

    Attributes:
        longer: The answer that has more tokens.
        pairs: Number of pairs, at least one.
        accuracy: Their reward accuracy.
        interval: Its 95 % interval (Wilson).
    """

    longer: Longer
    pairs: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of a head on a cache.

    Attributes:
        head: Folder of the head.
        cache: Folder or URL of the cache.
        which: The part of the cache's pairs that was used.
        pairs: Number of pairs.
        tokens: Number of response tokens.
        results: One an alpha.
        length_alpha: The strength that accuracy by length is told for: the one nearest to 1, or
            None where every alpha is 0.
        by_length: Reward accuracy by tokens of the pair, shortest first; every pair is in one bin,
            and bins hold about as many pairs as each other. Empty where `length_alpha` is None.
        by_longer: Reward accuracy by which answer is longer; groups without pairs are left out.
    """

    head: str
    cache: str
    which: Which
    pairs: int
    tokens: int
    results: tuple[AlphaResult, ...]
    length_alpha: float | None
    by_length: tuple[LengthBin, ...]
    by_longer: tuple[LongerGroup, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


def evaluate(
    head: str,
    cache: str | Path,
    alphas: Sequence[float],
    *,
    which: Which | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate a head on a cache.

    Args:
        head: Folder or hub id.
        cache: Folder or URL of the cache.
        alphas: Strengths.
        which: Part of the cache's pairs. If None, those held out from training where the cache
            holds the data the head was trained on, else all.
        device: `auto` or a torch device.

    Raises:
        MAVError: Head or cache are missing, damaged, or do not belong together.
    """
    placed = pick_device(device)
    stored = load_head(head, device=str(placed))
    reader = CacheReader(cache)
    require_same_features(stored.origin.manifest, reader.manifest, f"The head {head}", str(cache))
    subset = _subset(stored, reader, which)
    wanted = in_subset(reader.prompt_id, subset)
    if not wanted.any():
        raise DataError(
            f"{cache}: none of its pairs is {subset.which} (the head held out "
            f"{subset.fraction:.0%} of prompts). Choose others with --pairs, or another cache."
        )
    tallies = _tally(stored.head, reader, wanted.tolist(), alphas, placed)
    # Pairs are read in the order of the cache, so these are in the order of the tallies.
    lengths = reader.plan.response_length[wanted].astype(np.int64)
    length_alpha = min((a for a in alphas if a != 0), key=lambda a: (abs(a - 1), a), default=None)
    right = np.zeros(0, dtype=np.bool_)
    if length_alpha is not None:
        gains = tallies[list(alphas).index(length_alpha)][0]
        right = (gains[:, 0] > gains[:, 1]).numpy()
    return Evaluation(
        head=str(stored.path),
        cache=str(cache),
        which=subset.which,
        pairs=len(lengths),
        tokens=int(lengths.sum()),
        results=tuple(
            _result(alpha, gains, chosen, kl, norms)
            for alpha, (gains, chosen, kl, norms) in zip(alphas, tallies, strict=True)
        ),
        length_alpha=length_alpha,
        by_length=() if length_alpha is None else by_length(lengths.sum(axis=1), right),
        by_longer=() if length_alpha is None else by_longer(lengths, right),
    )


def by_length(
    tokens: NDArray[np.int64], right: NDArray[np.bool_], bins: int = _LENGTH_BINS
) -> tuple[LengthBin, ...]:
    """Return the share of right pairs by length, in bins that begin and end at quantiles.

    Args:
        tokens: Tokens of each pair, [P], at least one pair.
        right: Whether each pair is right, [P].
        bins: Most bins; fewer where many pairs are of one length, which share a bin.
    """
    shares = np.arange(1, bins + 1) / bins
    # Each edge is the length of a pair and the last of its bin, so no bin is empty.
    edges = np.unique(np.quantile(tokens, shares, method="inverted_cdf"))
    inside = np.searchsorted(edges, tokens)
    found = []
    for number in range(len(edges)):
        members = inside == number
        pairs, good = int(members.sum()), int(right[members].sum())
        found.append(
            LengthBin(
                fewest_tokens=int(tokens[members].min()),
                most_tokens=int(tokens[members].max()),
                pairs=pairs,
                accuracy=good / pairs,
                interval=wilson(good, pairs),
            )
        )
    return tuple(found)


def by_longer(lengths: NDArray[np.int64], right: NDArray[np.bool_]) -> tuple[LongerGroup, ...]:
    """Return the share of right pairs by which answer is longer.

    Args:
        lengths: Tokens of the chosen and the rejected answer of each pair, [P, 2].
        right: Whether each pair is right, [P].
    """
    more = np.sign(lengths[:, 0] - lengths[:, 1])
    signs: tuple[tuple[Longer, int], ...] = (("chosen", 1), ("neither", 0), ("rejected", -1))
    counted = [(name, right[more == sign]) for name, sign in signs]
    return tuple(
        LongerGroup(
            longer=name,
            pairs=len(inside),
            accuracy=float(inside.mean()),
            interval=wilson(int(inside.sum()), len(inside)),
        )
        for name, inside in counted
        if len(inside)
    )


def _subset(stored: StoredHead, reader: CacheReader, which: Which | None) -> PairSubset:
    fraction = stored.origin.held_out_fraction
    if which is None:
        trained_on = stored.origin.manifest.data.fingerprint == reader.manifest.data.fingerprint
        which = "held-out" if trained_on and fraction > 0 else "all"
    return PairSubset(which=which, fraction=fraction)


@torch.inference_mode()
def _tally(
    head: AlignmentHead,
    reader: CacheReader,
    wanted: list[bool],
    alphas: Sequence[float],
    device: torch.device,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return, for each alpha, gains [P, 2], log-probabilities [P, 2], KL [P] and norm [P]."""
    base = CachedBase(reader, device)
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in alphas]
    with progress_bar(sum(wanted), "Evaluating", "pair") as bar:
        for number in range(reader.plan.blocks):
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


def _result(alpha: float, gains: Tensor, logp: Tensor, kl: Tensor, norms: Tensor) -> AlphaResult:
    pairs = len(gains)
    right = int((logp[:, 0] > logp[:, 1]).sum())
    gained = int((gains[:, 0] > gains[:, 1]).sum())
    margin, margin_interval = mean_interval(gains[:, 0] - gains[:, 1])
    kl_mean, kl_interval = mean_interval(kl)
    return AlphaResult(
        alpha=alpha,
        reward_accuracy=gained / pairs if alpha != 0 else None,
        reward_accuracy_interval=wilson(gained, pairs) if alpha != 0 else None,
        logp_accuracy=right / pairs,
        logp_accuracy_interval=wilson(right, pairs),
        margin=margin,
        margin_interval=margin_interval,
        kl_per_token=kl_mean,
        kl_interval=kl_interval,
        vector_norm=float(norms.mean()),
    )
