"""Stage one: run the frozen base once over preference pairs and write the cache."""

import dataclasses
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from mav.cache_schema.comparison import require_same
from mav.cache_schema.creation import require_free
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import BaseModelRecord, Manifest
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.lock import LOCK, run_lock
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from mav.pipeline.base.given.wrap import GivenBase
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.quantization import (
    quantization_of,
)
from mav.pipeline.base.source import tokenizer_digest
from mav.pipeline.extraction.blocks import run_blocks
from mav.pipeline.extraction.dry_run import require_room
from mav.pipeline.extraction.job import ExtractionJob, load, unembedding_arrays
from mav.pipeline.extraction.manifest import as_begun, draft_manifest
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.extraction.packing import Packing
from mav.pipeline.extraction.prepare import (
    ExtractionInputs,
    choose_dtype,
    given_base,
    prepare,
    read,
    require_begun_in,
)
from mav.pipeline.runtime.choices import Quantize
from mav.pipeline.runtime.compute_dtype import dtype_name
from mav.pipeline.runtime.known_places import remember

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        manifest: The cache's manifest.
        pairs_done: Pairs run by this call; fewer than all when it resumed.
        seconds: Time of those forward passes and writes.
        packing: How pairs were packed, or None if nothing was run.
        stored_bytes: Size of the cache on disk.
    """

    manifest: Manifest
    pairs_done: int
    seconds: float
    packing: Packing | None
    stored_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        manifest = self.manifest
        return {
            "rows": manifest.data.rows,
            "pairs": manifest.data.pairs,
            "dropped": manifest.data.dropped,
            "prompts_truncated": manifest.data.prompts_truncated,
            "responses_cut": manifest.data.responses_cut,
            "response_tokens": manifest.plan.tokens,
            "blocks": manifest.plan.blocks,
            "layers": list(manifest.states.layers),
            "pairs_done": self.pairs_done,
            "seconds": self.seconds,
            "pairs_per_second": self.pairs_done / self.seconds if self.pairs_done else None,
            "packing": self.packing,
            "checks": manifest.checks,
            "stored_bytes": self.stored_bytes,
            "stored_bytes_per_token": self.stored_bytes / manifest.plan.tokens,
        }


def extract(options: ExtractOptions, *, base: GivenBase | None = None) -> ExtractReport:
    """Write the cache; resume an interrupted one; leave a complete one as it is.

    Processes launched together share the missing blocks.

    Args:
        options: What to extract.
        base: A loaded base to use instead of `options.base_model`.

    Raises:
        MAVError: An input is invalid; see its subclasses.
    """
    options, loaded = given_base(options, base)
    if loaded is None:
        return _extract(options, None)
    with loaded.in_use():
        return _extract(options, loaded)


def _extract(options: ExtractOptions, base: BaseModel | None) -> ExtractReport:
    inputs = prepare(options, base)
    processes, objects = inputs.processes, open_object_store(options.output)
    with ExitStack() as held:

        def lock() -> str:
            return held.enter_context(run_lock(objects))

        stored = processes.from_first(
            lambda: read_manifest(objects) if require_free(objects) else None
        )
        if stored is not None:
            require_begun_in(options, stored, dtype_name(options.dtype))
        # A complete cache is only read, so it may be read-only; a new one is
        # not begun before the data and the base are known to be good.
        begun = stored is not None and not stored.complete
        run = processes.from_first(lock) if begun else None
        data = read(options, inputs.tokenizer, stored)
        for given, kept in zip(options.sources, data.sources, strict=True):
            if kept.pairs and given.rows is None:
                remember(kept.fingerprint, given.id)
        if stored is not None:
            options = as_begun(options, stored, data)
            record = base.fingerprint() if base else _as_stored(stored, inputs, options.quantize)
            asked, _ = draft_manifest(options, record, stored.logits, data, stored.states.dtype)
            require_same(objects.location, stored, asked)
            if moved := _moved(stored.base, asked.base):
                _log.info(moved)
            _remember_base(inputs, asked)
            if not begun and processes.from_first(lambda: _sound(objects)):
                _log.info(f"{options.output}: already complete, nothing to do")
                return _report(objects, stored, 0, 0.0, None)
        # One type for all processes, whose devices may differ.
        dtype = processes.from_first(lambda: choose_dtype(options, inputs, stored))
        job = load(options, inputs, data, dtype)
        _remember_base(inputs, job.manifest)
        if stored is not None:
            # Again, with what is known only once the base is loaded.
            require_same(objects.location, stored, job.manifest)
        run = run or processes.from_first(lock)
        if stored is None:
            processes.from_first(lambda: _create(objects, run, job))
        writer = CacheWriter(objects, run)
        processes.from_first(lambda: writer.record_compute_dtype(dtype))
        if stored is not None and (lost := processes.from_first(lambda: _restore(writer, job))):
            _log.warning(f"Written again: {', '.join(lost)}")
        missing = processes.from_first(writer.missing)
        if stored is not None:
            processes.from_first(lambda: require_room(objects, job, missing, begun=True))
            blocks = job.plan.blocks
            _log.info(f"Resuming: {blocks - len(missing)} of {blocks} blocks are written")
        if processes.count > 1:
            _log.info(f"{processes.count} processes share {len(missing)} blocks")
        started = perf_counter()
        own = missing[processes.rank :: processes.count]
        done = run_blocks(job, writer, own, objects, alone=processes.count == 1)
        done = sum(processes.gather(done))
        processes.from_first(writer.complete)
        return _report(
            objects,
            read_manifest(objects),
            done,
            perf_counter() - started,
            job.forward.packing,
        )


def _sound(objects: ObjectStore) -> bool:
    try:
        CacheReader(objects.location)
    except CacheError:
        return False
    return True


def _as_stored(
    manifest: Manifest, inputs: ExtractionInputs, quantize: Quantize | None
) -> BaseModelRecord:
    """Describe a base without loading it; equal weights have the stored shapes."""
    assert inputs.source is not None
    return dataclasses.replace(
        manifest.base,
        id=inputs.source.id,
        revision=inputs.source.revision,
        weights_digest=inputs.source.weights_digest(),
        config_digest=inputs.source.config_digest(),
        tokenizer_digest=tokenizer_digest(inputs.tokenizer.get_vocab()),
        quantization=quantization_of(inputs.source, quantize),
    )


def _moved(stored: BaseModelRecord, asked: BaseModelRecord) -> str | None:
    """Return a message if a branch has moved to another commit of the same model."""
    if asked.id != stored.id or asked.revision == stored.revision:
        return None
    return (
        f"{asked.id} is at commit {asked.revision} now; when the cache was begun it was at "
        f"{stored.revision}; its weights, configuration and tokenizer are the same"
    )


def _remember_base(inputs: ExtractionInputs, manifest: Manifest) -> None:
    """Remember where the base is, for heads trained from the cache."""
    if inputs.source is not None:
        remember(manifest.base.weights_digest, inputs.source.id)


def _create(objects: ObjectStore, run: str, job: ExtractionJob) -> None:
    require_room(objects, job, list(range(job.plan.blocks)), begun=False)
    CacheWriter.create(
        objects, run, job.manifest, job.plan, job.data.columns(), unembedding_arrays(job)
    )


def _restore(writer: CacheWriter, job: ExtractionJob) -> list[str]:
    return writer.restore_static_objects(job.plan, job.data.columns(), unembedding_arrays(job))


def _report(
    objects: ObjectStore, manifest: Manifest, done: int, seconds: float, packing: Packing | None
) -> ExtractReport:
    return ExtractReport(
        manifest=manifest,
        pairs_done=done,
        seconds=seconds,
        packing=packing,
        stored_bytes=sum(size for key, size in objects.sizes().items() if key != LOCK),
    )
