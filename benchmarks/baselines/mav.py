"""Modular Alignment Vectors, by the project's own stages, in the variants of a table.

Training time leaves evaluation on held-out pairs out, which the baselines do afterwards too.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.baselines.lora import Trained
from benchmarks.baselines.scoring import Scores
from benchmarks.baselines.split import DataSettings
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.compute_dtype import pick_dtype_for_stored
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train
from mav.pipeline.training.trainer import Trainer

_NEVER: Final = 10**9


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the comparison.

    Attributes:
        name: Its name.
        layers: `--layer-selection` of the cache it is trained from.
        train: Fields of `TrainOptions` that differ from `COMMON`.
        alpha: Strength it is evaluated and decodes at.
    """

    name: str
    layers: str = "auto"
    train: Mapping[str, Any] = field(default_factory=dict)
    alpha: float = 1.0


COMMON: Final[Mapping[str, Any]] = {"expansion_size": 1024, "learning_rate": 1e-3}
"""Fields of `TrainOptions` of every variant."""

VARIANTS: Final[tuple[Variant, ...]] = (
    Variant(name="mav-dpo"),
    Variant(name="mav-published", train={"objective": "mav"}),
    Variant(name="mav-dpo-no-l2", train={"lambda_l2": 0.0}),
    Variant(name="mav-published-no-l2", train={"objective": "mav", "lambda_l2": 0.0}),
    Variant(name="mav-dpo-last-layer", layers="30"),
)
POOLED_SIZE: Final = 576


def extract_cache(data: DataSettings, layers: str, cache: Path) -> dict[str, Any]:
    """Write a cache; return the wall time, loading and checks included, and its size."""
    started = perf_counter()
    report = extract(
        ExtractOptions(
            base_model=data.base_model,
            data=DataSource(id=data.dataset, limit=data.limit),
            output=cache,
            layer_selection=layers,
            pooled_size=POOLED_SIZE,
            max_length=data.max_length,
        ),
    )
    return {
        "seconds": perf_counter() - started,
        "forward_seconds": report.seconds,
        "whole": report.pairs_done == report.manifest.data.pairs,
        "stored_bytes": report.stored_bytes,
    }


def train_head(
    data: DataSettings, variant: Variant, cache: Path, seed: int, folder: Path
) -> Trained:
    """Train a head; its folder is left with the last head only."""
    shutil.rmtree(folder, ignore_errors=True)
    evaluating = np.zeros(2)
    whole = Trainer.evaluate

    def timed(*arguments: Any) -> dict[str, float]:
        nonlocal evaluating
        started = _clocks()
        found = whole(*arguments)
        evaluating += _clocks() - started
        return found

    options: dict[str, Any] = {**COMMON, **variant.train}
    started = _clocks()
    with mock.patch.object(Trainer, "evaluate", timed):
        report = train(
            TrainOptions(
                cache=cache,
                output_dir=folder,
                eval_fraction=data.eval_fraction,
                eval_steps=_NEVER,
                seed=seed,
                **options,
            ),
        )
    seconds, cpu_seconds = (_clocks() - started - evaluating).tolist()
    for path in folder.iterdir():
        if path.is_dir() and path.name != "last":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    return Trained(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        parameters=report.total_parameters,
        steps=report.steps,
    )


def _clocks() -> NDArray[np.float64]:
    """Return wall time and processor time."""
    return np.array([perf_counter(), process_time()])


def score_head(folder: Path, cache: Path, data: DataSettings, alpha: float) -> Scores:
    """Score the held-out pairs as `mav evaluate` does, pair by pair."""
    reader = CacheReader(cache)
    wanted = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=data.eval_fraction))
    head = load_head(str(folder / "last")).head
    cpu = torch.device("cpu")
    dtype = pick_dtype_for_stored("auto", cpu)
    (scores,) = score_pairs(head, reader, wanted.tolist(), (alpha,), cpu, dtype)
    logps = scores.logps
    base: Tensor = logps - scores.gains
    return Scores(
        chosen=logps[:, 0],
        rejected=logps[:, 1],
        tuned_chosen=logps[:, 0],
        tuned_rejected=logps[:, 1],
        base_chosen=base[:, 0],
        base_rejected=base[:, 1],
        kl=scores.kl,
    )
