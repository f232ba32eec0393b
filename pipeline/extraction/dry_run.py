"""Estimates what an extraction will take, before it starts."""

import dataclasses
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import layouts
from mav.cache_schema.choices import Compression, LogitsEncoding
from mav.cache_schema.commits import read_commits
from mav.cache_schema.comparison import require_same
from mav.cache_schema.creation import require_free
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import (
    Manifest,
)
from mav.cache_schema.root import read_manifest
from mav.cache_schema.size_estimate import ExpectedSize, compressed_share, expected_size
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.base.given.wrap import GivenBase
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.job import ExtractionJob, load, unembedding_arrays
from mav.pipeline.extraction.manifest import as_begun
from mav.pipeline.extraction.options import ExtractOptions, states_storage
from mav.pipeline.extraction.prepare import (
    choose_dtype,
    given_base,
    prepare,
    read,
    require_begun_in,
)
from mav.pipeline.runtime.choices import StorageDtype
from mav.pipeline.runtime.compute_dtype import dtype_name
from mav.pipeline.runtime.progress import progress_bar

Rows = dict[str, NDArray[Any]]

_SAMPLE_SECONDS: Final = 15.0
_SAMPLE_PAIRS: Final = 32
_SPARE: Final = 1.02
"""Allowance for the file system's own overhead."""


@dataclass(frozen=True, kw_only=True)
class DryRunReport:
    """Estimated size and time of an extraction.

    Attributes:
        manifest: The manifest the cache would have.
        size: Its expected size.
        alternatives: Option -> bytes of the whole cache with that one changed.
        free_bytes: Free space where the cache goes, or None if there is no limit.
        missing_pairs: Pairs not run yet.
        pairs_per_second: Measured on a sample.
        processes: Processes that share the work.
    """

    manifest: Manifest
    size: ExpectedSize
    alternatives: dict[str, int]
    free_bytes: int | None
    missing_pairs: int
    pairs_per_second: float
    processes: int

    @property
    def hours(self) -> float:
        """Expected time for the remaining pairs, in hours."""
        return self.missing_pairs / (self.pairs_per_second * self.processes) / 3600

    @property
    def fits(self) -> bool:
        """Whether the rest of the cache fits in the free space."""
        return self.free_bytes is None or self.size.to_write * _SPARE <= self.free_bytes

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        manifest = self.manifest
        return {
            "rows": manifest.data.rows,
            "pairs": manifest.data.pairs,
            "dropped": manifest.data.dropped,
            "response_tokens": manifest.plan.tokens,
            "blocks": manifest.plan.blocks,
            "bytes": self.size.total,
            "bytes_to_write": self.size.to_write,
            "bytes_by_array": self.size.arrays,
            "bytes_with": self.alternatives,
            "free_bytes": self.free_bytes,
            "fits": self.fits,
            "missing_pairs": self.missing_pairs,
            "pairs_per_second": self.pairs_per_second * self.processes,
            "hours": self.hours,
        }


def dry_run(options: ExtractOptions, *, base: GivenBase | None = None) -> DryRunReport:
    """Estimate the size and time of an extraction; bytes are exact unless compressed.

    Nothing is written.

    Args:
        options: What would be extracted.
        base: A loaded base to use instead of `options.base_model`.

    Raises:
        MAVError: An input is invalid, as it would be for the extraction.
    """
    options, loaded = given_base(options, base)
    if loaded is None:
        return _dry_run(options, None)
    with loaded.in_use():
        return _dry_run(options, loaded)


def _dry_run(options: ExtractOptions, base: BaseModel | None) -> DryRunReport:
    inputs, objects = prepare(options, base), open_object_store(options.output)
    stored = read_manifest(objects) if require_free(objects) else None
    if stored is not None:
        require_begun_in(options, stored, dtype_name(options.dtype))
    data = read(options, inputs.tokenizer, stored)
    if stored is not None:
        options = as_begun(options, stored, data)
    job = load(options, inputs, data, choose_dtype(options, inputs, stored))
    if stored is not None:
        require_same(objects.location, stored, job.manifest)
    missing = _missing(objects, job)
    rows, rate = _sample(job)
    rows |= {f"unembedding/{name}": values for name, values in unembedding_arrays(job).items()}
    share = compressed_share(job.manifest, rows)
    return DryRunReport(
        manifest=job.manifest,
        size=expected_size(job.manifest, job.plan, share, missing=missing, begun=bool(stored)),
        alternatives=_alternatives(options, job, rows),
        free_bytes=objects.free_bytes(),
        missing_pairs=sum(len(job.plan.pairs_of(block)) for block in missing),
        pairs_per_second=rate,
        processes=inputs.processes.count,
    )


def require_room(
    objects: ObjectStore, job: ExtractionJob, missing: list[int], *, begun: bool
) -> None:
    """Refuse to start an extraction that the disk cannot hold.

    Args:
        objects: Where the cache goes.
        job: The extraction.
        missing: Blocks not written yet.
        begun: Whether plan and unembedding are written already.

    Raises:
        CacheError: It does not fit; gives the figures.
    """
    free = objects.free_bytes()
    if free is None:
        return
    share = dict.fromkeys(layouts(job.manifest), 1.0)
    size = expected_size(job.manifest, job.plan, share, missing=missing, begun=begun)
    if size.to_write * _SPARE > free and job.manifest.storage.compression != "none":
        # Measuring the compression takes time, so only if the uncompressed size does not fit.
        share = compressed_share(job.manifest, _sample(job)[0])
        size = expected_size(job.manifest, job.plan, share, missing=missing, begun=begun)
    if size.to_write * _SPARE > free:
        raise CacheError(
            f"{objects.location}: the cache needs {size.to_write / 1e9:.2f} GB more, but only "
            f"{free / 1e9:.2f} GB are free there. Free some space, name another `output`, or make "
            f"it smaller with `compression` blosc, `storage_dtype` int8, `pooled_size` or `limit`; "
            f"`mav extract --dry-run` shows what each takes."
        )


def screen(report: DryRunReport) -> str:
    """Format the report for the terminal."""
    data, size = report.manifest.data, report.size
    lines = [
        f"{data.pairs:,} pairs, {report.manifest.plan.tokens:,} response tokens, "
        f"{report.manifest.plan.blocks:,} blocks",
        "",
        *(f"{path:<32} {_bytes(count):>12}" for path, count in size.arrays.items()),
        f"{'together':<32} {_bytes(size.total):>12}  "
        f"({size.total / report.manifest.plan.tokens:,.0f} bytes per token)",
        "",
        *(
            f"{f'with {option}':<32} {_bytes(count):>12}"
            for option, count in report.alternatives.items()
        ),
        "",
        f"{'yet to be written':<32} {_bytes(size.to_write):>12}",
        f"{'free there':<32} "
        + (
            f"{'no limit':>12}" if report.free_bytes is None else f"{_bytes(report.free_bytes):>12}"
        ),
        "",
        f"{report.missing_pairs:,} pairs to run at "
        f"{report.pairs_per_second * report.processes:,.1f} pairs/s (measured on a sample): "
        f"{_duration(report.hours)}",
    ]
    if not report.fits:
        lines.append("The disk cannot hold it.")
    return "\n".join(lines)


def _missing(objects: ObjectStore, job: ExtractionJob) -> list[int]:
    sizes = objects.sizes()
    committed = read_commits(objects, job.manifest, sizes).records
    return [block for block in range(job.plan.blocks) if block not in committed]


def _sample(job: ExtractionJob) -> tuple[Rows, float]:
    """Run some pairs of the first block; return their rows and the pairs per second."""
    in_block = job.plan.pairs_of(0)
    parts: list[Rows] = []
    seconds, timed = 0.0, 0
    with progress_bar(None, "Sampling", "pair") as bar:
        for start in range(in_block.start, in_block.stop, _SAMPLE_PAIRS):
            part = range(start, min(start + _SAMPLE_PAIRS, in_block.stop))
            began = perf_counter()
            parts.append(job.forward.run(part, bar.update))
            # The first passes of a process are slow, so they count only if there are no others.
            if start > in_block.start or len(in_block) <= _SAMPLE_PAIRS:
                seconds += perf_counter() - began
                timed += len(part)
            if seconds > _SAMPLE_SECONDS:
                break
    rows = {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
    return rows, timed / seconds


def _alternatives(options: ExtractOptions, job: ExtractionJob, rows: Rows) -> dict[str, int]:
    """Return the cache's size with each storage option changed, one at a time."""
    manifest = job.manifest
    sizes: dict[str, int] = {}
    encodings: tuple[LogitsEncoding, ...] = ("factored", "dense", "topk")
    for name in encodings:
        logits = dataclasses.replace(
            manifest.logits, encoding=name, top_k=options.top_k if name == "topk" else None
        )
        sizes[f"--logits {name}"] = _total(job, {"logits": logits}, rows)
    for storage in get_args(StorageDtype):
        dtype, how = states_storage(storage)
        stored = {
            "states": dataclasses.replace(manifest.states, dtype=dtype),
            "storage": dataclasses.replace(manifest.storage, states=how),
        }
        sizes[f"--storage-dtype {storage}"] = _total(job, stored, rows)
    for compression in get_args(Compression):
        changed = dataclasses.replace(manifest.storage, compression=compression)
        sizes[f"--compression {compression}"] = _total(job, {"storage": changed}, rows)
    return sizes


def _total(job: ExtractionJob, changes: dict[str, Any], rows: Rows) -> int:
    manifest = dataclasses.replace(job.manifest, **changes)
    # Arrays that the sample has in another type are counted as if not compressed.
    same = {
        path: rows[path]
        for path, layout in layouts(manifest).items()
        if path in rows and rows[path].dtype == layout.dtype
    }
    return expected_size(manifest, job.plan, compressed_share(manifest, same)).total


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
