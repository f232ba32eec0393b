"""Evaluate a head on a cache at several strengths, without the base model."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mav.cache_schema.errors import DataError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.portable import portable
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.length_breakdown import LengthBin, LongerGroup, by_length, by_longer
from mav.pipeline.evaluation.mixture import Mixture
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.evaluation.pair_scores import PairScores, score_pairs
from mav.pipeline.evaluation.statistics import advice, has_hardly_moved, mean_interval, wilson
from mav.pipeline.head.compatibility import check_features, check_kind
from mav.pipeline.head.pretrained import StoredHead, load_head
from mav.pipeline.head.storage import CurvePoint
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.choices import Split
from mav.pipeline.runtime.compute_dtype import AUTO, Dtype, pick_dtype_for_stored, plain_name
from mav.pipeline.runtime.devices import pick_device
from mav.pipeline.runtime.known_places import shown_place
from mav.pipeline.runtime.named_values import places_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AlphaResult:
    """What a head does to the base at one strength.

    Attributes:
        alpha: The strength.
        reward_accuracy: Share of pairs whose chosen response gained more log-probability over the
            base than the rejected one; None at alpha 0, where nothing is gained.
        reward_accuracy_interval: Its 95 % interval (Wilson).
        logp_accuracy: Share of pairs whose chosen response is the more probable one.
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

    def point(self) -> CurvePoint:
        """Return what a head's files keep of it."""
        return CurvePoint(
            alpha=self.alpha,
            reward_accuracy=self.reward_accuracy,
            logp_accuracy=self.logp_accuracy,
            margin=self.margin,
            kl_per_token=self.kl_per_token,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of a head on a cache.

    Attributes:
        head: Folder of the head, or its hub id; of several heads `NAME=PLACE,NAME=PLACE`.
        cache: Folder or URL of the cache.
        which: The part of the cache's pairs that was used.
        pairs: Number of pairs.
        tokens: Number of response tokens.
        computed_in: Type of the products.
        steps: Optimizer steps the head took, or the heads together.
        results: One per alpha.
        hardly_moved: Whether the KL at alpha 1 is so small that the head leaves the base about as
            it is; None where alpha 1 is not among the strengths.
        length_alpha: The strength of the accuracies by length: the one nearest to 1, or None where
            every alpha is 0.
        by_length: Reward accuracy by tokens of the pair, shortest first; every pair is in one bin,
            and bins hold about as many pairs as each other. Empty where `length_alpha` is None.
        by_longer: Reward accuracy by which response is longer; groups without pairs are left out.
        alpha: Of several heads the strength of each, which those of `results` multiply; else None.
    """

    head: str
    cache: str
    which: Split
    pairs: int
    tokens: int
    computed_in: str
    steps: int
    results: tuple[AlphaResult, ...]
    hardly_moved: bool | None
    length_alpha: float | None
    by_length: tuple[LengthBin, ...]
    by_longer: tuple[LongerGroup, ...]
    alpha: dict[str, float] | None = None

    @property
    def advice(self) -> str | None:
        """What to change about a head that has hardly moved, in one line; None for other heads."""
        if not self.hardly_moved:
            return None
        kl = next(result.kl_per_token for result in self.results if result.alpha == 1)
        return advice(kl, f"{self.pairs:,} pairs ({self.which})", self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        places = {"head": shown_place(self.head), "cache": shown_place(self.cache)}
        return dataclasses.asdict(self) | places


def evaluate(options: EvaluateOptions) -> Evaluation:
    """Evaluate a head on a cache.

    Args:
        options: The head, the cache, and how to evaluate.

    Raises:
        MAVError: Head or cache are missing, damaged, or do not fit each other.
    """
    cache, alphas = options.cache, options.alphas
    places = places_of(options.head)
    placed = pick_device(options.device)
    stored = {name: load_head(str(head), device=str(placed)) for name, head in places.items()}
    reader = CacheReader(cache)
    for name, one in stored.items():
        manifest = one.origin.manifest
        check_features(manifest, reader.manifest, f"The head {places[name]}", str(cache))
        check_kind(one.head.config, reader.manifest, str(cache))
    heads = [*stored.values()]
    subset = _subset(heads, reader, options.pairs)
    wanted = in_subset(reader.prompt_id, subset, reader.evaluation_only)
    if not wanted.any():
        raise DataError(
            f"{cache}: none of its pairs is {subset.split} (training held out "
            f"{subset.fraction:.0%} of prompts). Choose other `pairs`, or another cache."
        )
    _log.debug(f"{cache}: {wanted.sum()} of {len(wanted)} pairs are evaluated")
    computed_in = _dtype(options.dtype, reader.manifest, placed)
    mixture = Mixture(
        heads=tuple(one.head for one in heads),
        weights=tuple((options.alpha or {"": 1.0})[name] for name in stored),
    )
    scores = score_pairs(mixture, reader, wanted.tolist(), alphas, placed, computed_in)
    # In the order of the cache, as the scores are.
    lengths = reader.plan.response_length[wanted].astype(np.int64)
    length_alpha = min((a for a in alphas if a != 0), key=lambda a: (abs(a - 1), a), default=None)
    right = np.zeros(0, dtype=np.bool_)
    if length_alpha is not None:
        gains = scores[alphas.index(length_alpha)].gains
        right = (gains[:, 0] > gains[:, 1]).numpy()
    results = tuple(
        _result(alpha, of_alpha) for alpha, of_alpha in zip(alphas, scores, strict=True)
    )
    at_one = next((result.kl_per_token for result in results if result.alpha == 1), None)
    shown = {
        name: str(stored[name].path) if Path(head).exists() else str(head)
        for name, head in places.items()
    }
    return Evaluation(
        head=shown.get("") or ",".join(f"{n}={shown_place(at)}" for n, at in shown.items()),
        alpha=None if options.alpha is None else dict(options.alpha),
        cache=str(cache),
        which=subset.split,
        pairs=len(lengths),
        tokens=int(lengths.sum()),
        steps=sum(one.origin.steps for one in heads),
        computed_in=plain_name(computed_in),
        results=results,
        hardly_moved=None if at_one is None else has_hardly_moved(at_one),
        length_alpha=length_alpha,
        by_length=() if length_alpha is None else by_length(lengths.sum(axis=1), right),
        by_longer=() if length_alpha is None else by_longer(lengths, right),
    )


def _subset(heads: Sequence[StoredHead], reader: CacheReader, which: Split | None) -> PairSubset:
    # What the least share holds out, every larger one does too.
    fraction = min(one.origin.held_out_fraction for one in heads)
    if which is None:
        shares = any(_share_data(one.origin.manifest, reader.manifest) for one in heads)
        may_know = fraction > 0 and shares
        which = "held-out" if may_know or reader.evaluation_only.any() else "all"
    return PairSubset(split=which, fraction=fraction)


def _dtype(asked: Dtype, manifest: Manifest, device: torch.device) -> torch.dtype:
    if asked == AUTO and manifest.states.dtype != "bfloat16":
        _log.info(f"Computing in float32: states are stored in {manifest.states.dtype}")
        return torch.float32
    return pick_dtype_for_stored(asked, device)


def _share_data(trained_on: Manifest, other: Manifest) -> bool:
    """Return whether a cache has pairs that a head may have been trained on."""
    if trained_on.data.fingerprint == other.data.fingerprint:
        return True
    known, others = (
        {(source.id, source.data_dir, source.split) for source in portable(manifest).data.sources}
        for manifest in (trained_on, other)
    )
    return bool(known & others)


def _result(alpha: float, scores: PairScores) -> AlphaResult:
    gains, logps = scores.gains, scores.logps
    pairs = len(gains)
    right = int((logps[:, 0] > logps[:, 1]).sum())
    gained = int((gains[:, 0] > gains[:, 1]).sum())
    margin, margin_interval = mean_interval(gains[:, 0] - gains[:, 1])
    kl, kl_interval = mean_interval(scores.kl)
    return AlphaResult(
        alpha=alpha,
        reward_accuracy=gained / pairs if alpha != 0 else None,
        reward_accuracy_interval=wilson(gained, pairs) if alpha != 0 else None,
        logp_accuracy=right / pairs,
        logp_accuracy_interval=wilson(right, pairs),
        margin=margin,
        margin_interval=margin_interval,
        kl_per_token=kl,
        kl_interval=kl_interval,
        vector_norm=float(scores.vector_norm.mean()),
    )


def curve_of(evaluation: Evaluation) -> tuple[CurvePoint, ...]:
    """Return what a head's files and its card keep of an evaluation."""
    return tuple(result.point() for result in evaluation.results)
