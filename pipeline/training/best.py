"""The best head of a run: which one it is, when waiting for a better one ends, what it changes."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from mav.cache_schema.errors import DataError
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.evaluation.statistics import advice, has_hardly_moved
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.training.checkpoint import TrainState
from mav.pipeline.training.criteria import CRITERIA
from mav.pipeline.training.data import EvaluationSet
from mav.pipeline.training.options import TrainOptions

_log = logging.getLogger(__name__)

BEST: Final = "best"
LAST: Final = "last"
_PAIRS_FOR_KL: Final = 64


def judge(
    state: TrainState,
    evaluation: Mapping[str, float],
    options: TrainOptions,
    *,
    every: int,
    total: int,
) -> tuple[TrainState, bool]:
    """Return the state after an evaluation, and whether this step's head is the best so far.

    Args:
        state: The state before it.
        evaluation: Its metrics; none where nothing is held out, which makes every head the best.
        options: What to train.
        every: Steps between evaluations.
        total: Steps of the run.

    Raises:
        DataError: The loss is not finite.
    """
    if not evaluation:
        return dataclasses.replace(state, complete=state.step == total), True
    loss, criterion = evaluation["loss"], CRITERIA[options.keep_by]
    if not math.isfinite(loss):
        raise DataError(
            f"{options.folder}: the held-out loss is {loss} at step {state.step}, so the run "
            f"has diverged. Use a smaller `learning_rate` or turn `bf16` off; what was saved "
            f"before is kept."
        )
    value = criterion.value(evaluation, state.step)
    best = state.best_value is None or criterion.is_better(value, state.best_value)
    if best:
        state = dataclasses.replace(state, best_step=state.step, best_value=value)
    waited = (state.step - state.best_step) // every if state.best_step is not None else 0
    stop = options.early_stopping is not None and waited >= options.early_stopping
    return dataclasses.replace(state, complete=stop or state.step == total), best


def kl_of_best(
    output_dir: Path, held_out: EvaluationSet, device: torch.device, dtype: torch.dtype
) -> float:
    """Measure how far the best head moves the base; warn if it hardly does.

    Args:
        output_dir: Folder of the run.
        held_out: The pairs it was evaluated on, of which the first are measured.
        device: Where to compute.
        dtype: Type of the products.

    Returns:
        Mean KL(aligned || base) at alpha 1, in nats per token.
    """
    best = load_head(str(output_dir / BEST))
    wanted = held_out.wanted & (held_out.wanted.cumsum() <= _PAIRS_FOR_KL)
    (scores,) = score_pairs(
        best.head.to(device), held_out.reader, wanted.tolist(), [1.0], device, dtype
    )
    kl = float(scores.kl.mean())
    if has_hardly_moved(kl):
        _log.warning(advice(kl, f"{wanted.sum()} held-out pairs", best.origin.steps))
    return kl
