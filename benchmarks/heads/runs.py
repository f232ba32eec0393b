"""Trains and scores one variant."""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch

from benchmarks.heads.grid import Variant
from benchmarks.result_lines import ResultLines
from benchmarks.synthetic import device_name, say
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.compute_dtype import pick_dtype_for_stored, plain_name
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train

_NEVER: Final = 10**9
"""Steps between evaluations: the one after the last step is all."""


def run_missing(
    cache: Path, work: Path, results: ResultLines, wanted: Iterable[Variant], *, most: int | None
) -> None:
    """Run the variants that have no line yet.

    Args:
        cache: The cache.
        work: Folder for what is trained.
        results: The file of results.
        wanted: The variants.
        most: Most of them to run; all if None.
    """
    reader = CacheReader(cache)
    left = [v for v in wanted if results.get(key_of(reader, v)) is None]
    for number, variant in enumerate(left[:most], 1):
        say(f"[{number}/{len(left)}] {variant}")
        results.add(key_of(reader, variant), run(reader, cache, work, variant))


def key_of(reader: CacheReader, variant: Variant) -> dict[str, Any]:
    """Return what a line is about: the variant, the options it stands for, and the cache."""
    manifest = reader.manifest
    return {
        **dataclasses.asdict(variant),
        "options": variant.options(),
        "cache": {
            "base": manifest.base.id,
            "pairs": manifest.data.pairs,
            "data": manifest.data.fingerprint,
            "layers": list(manifest.states.layers),
        },
    }


def run(reader: CacheReader, cache: Path, work: Path, variant: Variant) -> dict[str, Any]:
    """Train a head, and score its held-out pairs as `mav evaluate` does, at alpha 1.

    Returns:
        What was found: of each held-out pair whether it is `right` (1 or 0), its `margin` and `kl`
        per token; metrics of the last evaluation; parameters, steps and processor time.
    """
    folder = work / f"{variant.head_type}-{variant.recipe}-seed{variant.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    started = process_time()
    report = train(
        TrainOptions(
            cache=cache,
            output_dir=folder,
            eval_steps=_NEVER,
            report_to="none",
            workers=1,
            **variant.options(),
        )
    )
    seconds = process_time() - started
    cpu = torch.device("cpu")
    dtype = pick_dtype_for_stored("auto", cpu)
    subset = PairSubset(split="held-out", fraction=variant.eval_fraction)
    wanted = in_subset(reader.prompt_id, subset, reader.evaluation_only).tolist()
    (scores,) = score_pairs(
        load_head(str(folder / "last")).head, reader, wanted, (1.0,), cpu, dtype
    )
    margins = scores.gains[:, 0] - scores.gains[:, 1]
    shutil.rmtree(folder)
    return {
        "right": (margins > 0).int().tolist(),
        "margin": [round(value, 4) for value in margins.tolist()],
        "kl": [round(value, 6) for value in scores.kl.tolist()],
        "logp_accuracy": float((scores.logps[:, 0] > scores.logps[:, 1]).double().mean()),
        "evaluation": {
            name: value for name, value in report.evaluation.items() if "per_second" not in name
        },
        "training_pairs": len(wanted) - sum(wanted),
        "parameters": report.total_parameters,
        "steps": report.steps,
        "cpu_seconds": round(seconds, 1),
        "machine": {
            "processor": device_name(cpu),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "computed_in": plain_name(dtype),
        },
    }
