"""Whether caches that are extracted and read on the device hold what they should."""

import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.gpu.place import Place, Tell
from benchmarks.gpu.small import MAX_LENGTH, POOLED, on_device, small_base, small_rows
from benchmarks.gpu.verdicts import SAME, TOLERANCE, Checks, apart, named
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.loader.dataset import CachedPreferenceDataset, prefetch
from mav.pipeline.loader.sampler import StepLayout, order_epoch
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.verification.against_base import LOSS

WAYS: Final[dict[str, dict[str, Any]]] = {
    "factored": {},
    "dense": {"logits": "dense"},
    "topk": {"logits": "topk", "top_k": 16},
    "int8": {"storage_dtype": "int8"},
    "fp8": {"storage_dtype": "fp8"},
}
_BLOCK_TOKENS: Final = 192
_CPU: Final = torch.device("cpu")


def run(place: Place, tell: Tell) -> None:
    """Compare caches in every encoding and storage, and batches on their way to the device."""
    checks = Checks(tell)
    folder = place.folder("cache")
    rows = small_rows(folder)
    reference = small_base("groups")
    want = {}
    for name in ("factored", "topk"):
        made = make_cache(reference, rows, folder / f"reference-{name}", **WAYS[name])
        want[name] = _contents(made, _CPU)
    for dtype in place.types:
        here = on_device(reference, place.device, dtype)
        for name, options in WAYS.items():
            if dtype == torch.float32 and name != "factored":
                continue
            storage = options.get("storage_dtype", "computed")
            tolerance = TOLERANCE[dtype] + LOSS[storage]
            found: dict[str, Tensor] = {}

            def states(
                name: str = name,
                here: BaseModel = here,
                found: dict[str, Tensor] = found,
                options: dict[str, Any] = options,
            ) -> float:
                output = folder / f"{name}-{named(here.dtype)}"
                made = make_cache(here, rows, output, **options)
                found |= _contents(made, place.device)
                return apart(found["states"], want["factored"]["states"])

            def logprobs(name: str = name, found: dict[str, Tensor] = found) -> float:
                right = want.get(name, want["factored"])
                return apart(found["logprobs"], right["logprobs"])

            checks.check(f"states, {name}, {named(dtype)}", tolerance, states)
            if found:
                checks.check(f"log-probabilities, {name}, {named(dtype)}", tolerance, logprobs)
    checks.check("batches read ahead", SAME, lambda: _read_ahead(folder, place.device))
    checks.finish()


def make_cache(base: BaseModel, rows: Path, output: Path, **options: Any) -> CacheReader:
    """Extract a cache of a few blocks.

    Args:
        base: The base, wherever it is.
        rows: The pairs.
        output: Where to.
        **options: Of the extraction.
    """
    extract(
        ExtractOptions(
            base_model="small",
            data=DataSource(id=str(rows)),
            output=output,
            max_length=MAX_LENGTH,
            dtype=named(base.dtype),  # type: ignore[arg-type]
            device=str(base.device),
            block_tokens=_BLOCK_TOKENS,
            **{"pooled_size": POOLED, "storage_dtype": named(base.dtype), **options},
        ),
        base=base,
    )
    return CacheReader(output)


def _contents(reader: CacheReader, device: torch.device) -> dict[str, Tensor]:
    """Return a cache's states and the log-probabilities of its labels, as training gets them."""
    base = CachedBase(reader, device)
    states, logprobs = [], []
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        pairs = [(block, pair) for pair in range(len(block.pairs))]
        batch = collate(pairs, reader.manifest, len(pairs)).to(device)
        logits_NV = base.logits(batch).chunk(0, len(batch.labels))
        picked = logits_NV.gather(-1, batch.labels.long()[:, None])[:, 0]
        states.append(batch.states.float().cpu())
        # Over those of a uniform distribution, so that the error is relative to what was said.
        uniform = math.log(logits_NV.shape[-1])
        logprobs.append((picked - logits_NV.logsumexp(-1) + uniform).cpu())
    return {"states": torch.cat(states), "logprobs": torch.cat(logprobs)}


def _read_ahead(folder: Path, device: torch.device) -> float:
    """Return how many batches arrive otherwise than they were read."""

    def stream() -> CachedPreferenceDataset:
        layout = StepLayout(batch_size=3, grad_accum=1)
        reader = CacheReader(folder / "reference-factored")
        order = order_epoch(reader.plan, None, layout, seed=0, epoch=0)
        return CachedPreferenceDataset(reader, order, workers=2)

    moved = [batch.to(device) for batch in prefetch(stream(), pinned=device.type == "cuda")]
    plain = list(stream())
    assert len(moved) == len(plain), "an epoch has as many batches as another"
    return float(sum(not _equal(a, b) for a, b in zip(moved, plain, strict=True)))


def _equal(moved: Batch, plain: Batch) -> bool:
    return torch.equal(moved.offsets.cpu(), plain.offsets) and all(
        torch.equal(rows.cpu(), plain.rows[path]) for path, rows in moved.rows.items()
    )
