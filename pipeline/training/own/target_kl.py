"""The strength at which a head is as far from its base as asked for, from its held-out curve."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.evaluation.evaluate import curve_of, evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.saving import write_recommendation
from mav.pipeline.head.storage import CurvePoint, Recommendation
from mav.pipeline.training.best import BEST
from mav.pipeline.training.options import TrainOptions

_log = logging.getLogger(__name__)

ALPHAS: Final = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Strengths of the curve; beyond the last, texts fall apart before any KL is of use."""
GRID: Final = 0.05
"""What a recommended alpha is a multiple of."""

Measure = Callable[[Sequence[float]], Sequence[CurvePoint]]


def recommend(options: TrainOptions, device: str) -> Recommendation:
    """Measure the best head of a run by alpha, and write the strength that reaches the target.

    Args:
        options: The run, with a `target_kl`.
        device: Where to compute.

    Raises:
        MAVError: The head or the cache cannot be read.
    """
    assert options.target_kl is not None
    pairs = 0

    def measure(alphas: Sequence[float]) -> Sequence[CurvePoint]:
        nonlocal pairs
        found = evaluate(
            EvaluateOptions(
                head=options.folder / BEST,
                cache=options.cache if options.eval_cache is None else options.eval_cache,
                alphas=alphas,
                pairs="held-out" if options.eval_cache is None else "all",
                device=device,
            )
        )
        pairs = found.pairs
        return curve_of(found)

    curve = tuple(measure(ALPHAS))
    chosen = alpha_for(options.target_kl, curve, measure)
    found = Recommendation(
        alpha=chosen.alpha,
        target_kl=options.target_kl,
        kl_per_token=chosen.kl_per_token,
        pairs=pairs,
        curve=tuple(sorted({*curve, chosen}, key=lambda point: point.alpha)),
    )
    write_recommendation(options.folder / BEST, found)
    _log.info(
        f"Recommended alpha {found.alpha:g}: {found.kl_per_token:.3g} nats a token from the base "
        f"on {pairs:,} held-out pairs, of {options.target_kl:g} asked for"
    )
    return found


def alpha_for(target: float, curve: Sequence[CurvePoint], measure: Measure) -> CurvePoint:
    """Return the largest strength of the grid that stays within a KL, as measured there.

    Args:
        target: The KL per token, in nats.
        curve: What was measured, by alpha.
        measure: Measures more.

    Raises:
        UsageError: Even the smallest strength of the grid goes beyond.
    """
    beyond = next((at for at, point in enumerate(curve) if point.kl_per_token > target), None)
    if beyond is None:
        last = curve[-1]
        _log.warning(
            f"`target_kl` {target:g} is not reached: at alpha {last.alpha:g}, the largest that is "
            f"tried, the KL to the base is {last.kl_per_token:.3g} nats a token"
        )
        return last
    # The KL grows with about the square of alpha, so its root is about a line.
    low, high = curve[beyond - 1], curve[beyond]
    roots = [math.sqrt(max(0.0, point.kl_per_token)) for point in (low, high)]
    share = (math.sqrt(target) - roots[0]) / (roots[1] - roots[0])
    steps = math.floor((low.alpha + share * (high.alpha - low.alpha)) / GRID + 1e-9)
    below = round(low.alpha / GRID)
    found = low
    for step in range(max(steps, below + 1), round(high.alpha / GRID)):
        (point,) = measure([round(step * GRID, 4)])
        if point.kl_per_token > target:
            break
        found = point
    if found is low and steps > below:
        for step in range(steps - 1, below, -1):
            (point,) = measure([round(step * GRID, 4)])
            if point.kl_per_token <= target:
                found = point
                break
    if found.alpha == 0:
        raise UsageError(
            f"target_kl: got {target:g}, but at alpha {GRID:g} the head is beyond it already; ask "
            f"for more, or train with a larger `lambda_kl`"
        )
    return found
