"""Loads and checks the base of an extraction, and plans the cache."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from mav.cache_schema.choices import StoredDtype
from mav.cache_schema.manifest import (
    LogitsRecord,
    Manifest,
)
from mav.cache_schema.plan import BlockPlan
from mav.pipeline.base.loading import load_source
from mav.pipeline.extraction.batch_size import CPU_TOKENS, BatchBudget, measured_budget
from mav.pipeline.extraction.block_runner import BlockForward
from mav.pipeline.extraction.limits import require_readable
from mav.pipeline.extraction.manifest import draft_manifest
from mav.pipeline.extraction.model_checks import check_base
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.extraction.packing import even_batches
from mav.pipeline.extraction.prepare import ExtractionInputs
from mav.pipeline.head.config import PUBLISHED_POOLED_SIZE
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.ops.tensor_storage import require_holds, to_stored
from mav.pipeline.preferences.load import ReadData
from mav.pipeline.runtime.compute_dtype import (
    TORCH_DTYPES,
)
from mav.pipeline.runtime.load_options import LoadOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """A prepared extraction: manifest, plan, data and forward pass.

    Attributes:
        manifest: The manifest of the cache, not yet complete.
        plan: Its block plan.
        data: The tokenized pairs.
        unembedding: The base's output embedding.
        forward: Computes the rows of pairs.
    """

    manifest: Manifest
    plan: BlockPlan
    data: ReadData
    unembedding: Unembedding
    forward: BlockForward


def load(
    options: ExtractOptions, inputs: ExtractionInputs, data: ReadData, dtype: StoredDtype
) -> ExtractionJob:
    """Load the base, check it, and plan the cache.

    Args:
        options: What is asked for.
        inputs: What is known before the base is loaded.
        data: The tokenized pairs.
        dtype: Type to compute in.

    Raises:
        MAVError: The base cannot be loaded, or fails a check of extraction.
    """
    base = inputs.base
    require_readable(str(options.base_model), data.pairs, inputs.config)
    if base is None:
        assert inputs.source is not None
        _log.info(f"Loading {inputs.source.id} in {dtype}")
        base = load_source(
            inputs.source,
            LoadOptions(
                dtype=TORCH_DTYPES[dtype],
                device=inputs.device,
                device_map=options.device_map,
                quantize=options.quantize,
                merge_adapter=options.merge_adapter,
            ),
            inputs.tokenizer,
        )
    unembedding = base.unembedding()
    record = base.fingerprint()
    manifest, plan = draft_manifest(options, record, _logits_record(unembedding), data, dtype)
    if options.pooled_size is None:
        _log.info(_width_line(manifest))
    verdict = check_base(
        base,
        data.pairs,
        manifest.states.layers,
        options.max_length,
        must_factor=options.logits == "factored",
    )
    manifest = dataclasses.replace(manifest, checks=verdict.errors)
    forward = BlockForward(
        base,
        data.pairs,
        plan,
        manifest,
        unembedding if verdict.factored else None,
        packing=verdict.packing,
        budget=BatchBudget(options.batch_tokens or CPU_TOKENS),
    )
    devices = base.devices
    if options.batch_tokens is None and devices[0].type != "cpu":
        forward.budget = _measured(forward, plan, data, devices)
        _log.info(f"Batches of up to {forward.budget.tokens:,} tokens, chosen by free memory")
    return ExtractionJob(
        manifest=manifest, plan=plan, data=data, unembedding=unembedding, forward=forward
    )


def _measured(
    forward: BlockForward, plan: BlockPlan, data: ReadData, devices: list[torch.device]
) -> BatchBudget:
    """Measure the batch budget by running one batch of the first block."""
    first = even_batches(plan.pairs_of(0), data.pairs.shared_length, CPU_TOKENS)[0]
    tokens = int(data.pairs.shared_length[first.start : first.stop].sum())
    return measured_budget(devices, tokens, lambda: forward.run(first, lambda _: None))


def unembedding_arrays(job: ExtractionJob) -> dict[str, NDArray[Any]]:
    """Return the arrays of the output embedding, as stored."""
    if job.manifest.logits.encoding != "factored":
        return {}
    dtype, what = TORCH_DTYPES[job.manifest.states.dtype], "Weights of the output embedding"
    require_holds(job.unembedding.weight, job.manifest.states.dtype, what)
    arrays = {"weight": to_stored(job.unembedding.weight.to(dtype))}
    if job.unembedding.bias is not None:
        arrays["bias"] = to_stored(job.unembedding.bias.to(dtype))
    return arrays


def _width_line(manifest: Manifest) -> str:
    width = manifest.states.pooled_size
    if width == PUBLISHED_POOLED_SIZE:
        return f"Layers are pooled to {width}, the published width"
    return (
        f"Layers are pooled to {width}, the base's own width (the published head's is "
        f"`pooled_size` {PUBLISHED_POOLED_SIZE})"
    )


def _logits_record(unembedding: Unembedding) -> LogitsRecord:
    return LogitsRecord(
        encoding="factored",
        scale=unembedding.scale,
        softcap=unembedding.softcap,
        has_bias=unembedding.bias is not None,
        top_k=None,
    )
