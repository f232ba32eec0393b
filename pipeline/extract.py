"""Stage one: run the frozen base once over preference pairs and write the cache."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from cache_schema.errors import DataError, UsageError
from cache_schema.manifest import BaseModelRecord, LogitsRecord, Manifest
from cache_schema.plan import BlockPlan
from cache_schema.store import stored_bytes
from cache_schema.writer import CacheWriter, require_free
from pipeline.base_checks import check_base
from pipeline.base_logits import Unembedding
from pipeline.base_model import BaseModel, load_source, load_tokenizer
from pipeline.base_source import BaseSource, resolve_base, tokenizer_digest
from pipeline.block_forward import BlockForward
from pipeline.devices import pick_device
from pipeline.extract_options import ExtractOptions, draft_manifest
from pipeline.kernel_cache import bound_kernel_cache
from pipeline.preferences import ReadCounts, read_pairs
from pipeline.progress import progress_bar
from pipeline.stored import TORCH_DTYPES, to_stored
from pipeline.tokenizing import TokenizedPairs, tokenize_pairs

_CPU_BATCH_TOKENS: Final = 2048
_ACCELERATOR_BATCH_TOKENS: Final = 16384

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        manifest: The cache's manifest.
        pairs_done: Pairs run by this call; fewer than all when it resumed.
        seconds: Time of those forward passes and writes.
        shared_prompt: Whether prompts were shared, or None if nothing was run.
        stored_bytes: Size of the cache on disk.
    """

    manifest: Manifest
    pairs_done: int
    seconds: float
    shared_prompt: bool | None
    stored_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures people script with."""
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
            "shared_prompt": self.shared_prompt,
            "checks": manifest.checks,
            "stored_bytes": self.stored_bytes,
            "stored_bytes_per_token": self.stored_bytes / manifest.plan.tokens,
        }


def extract(
    options: ExtractOptions, *, say: Say = lambda _: None, base: BaseModel | None = None
) -> ExtractReport:
    """Write the cache, or go on with one that was interrupted, or leave a complete one as it is.

    Args:
        options: What to extract.
        say: Called with each line worth telling the user.
        base: A loaded base to use in place of `options.base_model`.

    Raises:
        MAVError: Any input is at fault; see its subclasses.
    """
    bound_kernel_cache()
    if base is not None and base.dtype != TORCH_DTYPES[options.dtype]:
        raise UsageError(
            f"dtype: asked for {options.dtype}, but the base that was given computes in "
            f"{base.dtype}; states are stored as they are computed, so give both the same"
        )
    require_free(options.output)
    pick_device(options.device)
    source = None if base else resolve_base(options.base_model, options.gguf_file, options.revision)
    tokenizer = base.tokenizer if base else load_tokenizer(_known(source))
    pairs, counts = _read(options, tokenizer, say)

    writer = CacheWriter(options.output) if (options.output / "zarr.json").exists() else None
    if writer is not None:
        found = base.record() if base else _as_stored(writer.manifest, _known(source), tokenizer)
        asked, _ = draft_manifest(options, found, writer.manifest.logits, pairs, counts)
        writer.require_same(asked)
        if writer.manifest.complete and len(writer.committed) == asked.plan.blocks:
            say(f"{options.output}: complete already, left as it is")
            return _report(writer, 0, 0.0, None)
        say(
            f"Going on where it stopped: {len(writer.committed)} of {asked.plan.blocks} blocks "
            f"are written"
        )

    if base is None:
        say(f"Loading {_known(source).id} in {options.dtype}")
        base = load_source(_known(source), dtype=TORCH_DTYPES[options.dtype], device=options.device)
    unembedding = base.unembedding()
    manifest, plan = draft_manifest(
        options, base.record(), _logits_record(unembedding), pairs, counts
    )
    verdict = check_base(
        base,
        pairs,
        manifest.states.layers,
        options.max_length,
        must_factor=options.logits == "factored",
        say=say,
    )
    if writer is None:
        writer = _create(
            options, dataclasses.replace(manifest, checks=verdict.errors), plan, unembedding, pairs
        )
    forward = BlockForward(
        base,
        pairs,
        plan,
        manifest,
        unembedding if verdict.factored else None,
        shared_prompt=verdict.shared_prompt,
        batch_tokens=options.batch_tokens
        or (_CPU_BATCH_TOKENS if base.device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS),
    )
    started = perf_counter()
    done = _run_blocks(forward, writer, plan)
    writer.complete()
    return _report(writer, done, perf_counter() - started, forward.shared_prompt)


def _known(source: BaseSource | None) -> BaseSource:
    assert source is not None
    return source


def _read(options: ExtractOptions, tokenizer: Any, say: Say) -> tuple[TokenizedPairs, ReadCounts]:
    counts = ReadCounts()
    with progress_bar(None, "Tokenizing", "pair") as bar:
        pairs = tokenize_pairs(
            read_pairs(options.data, counts), tokenizer, options.max_length, bar.update
        )
    dropped = counts.dropped + pairs.dropped
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(dropped.items())) or "none"
    say(f"{options.data.id}: {counts.rows} rows, {len(pairs)} pairs kept; dropped: {causes}")
    if pairs.prompts_truncated or pairs.responses_cut:
        say(
            f"The limit of {options.max_length} tokens took the beginning of "
            f"{pairs.prompts_truncated} prompts and the end of an answer of "
            f"{pairs.responses_cut} pairs"
        )
    if not len(pairs):
        raise DataError(
            f"{options.data.id}: no usable pair among {counts.rows} rows (dropped: {causes}). "
            f"Texts must be transcripts with an 'Assistant:' turn, and the answers must differ."
        )
    return pairs, counts


def _as_stored(manifest: Manifest, source: BaseSource, tokenizer: Any) -> BaseModelRecord:
    """Describe a base without loading it: the same weights have the stored shapes."""
    return dataclasses.replace(
        manifest.base,
        weights_digest=source.weights_digest(),
        tokenizer_digest=tokenizer_digest(tokenizer.get_vocab()),
    )


def _logits_record(unembedding: Unembedding) -> LogitsRecord:
    return LogitsRecord(
        encoding="factored",
        scale=unembedding.scale,
        softcap=unembedding.softcap,
        has_bias=unembedding.bias is not None,
        top_k=None,
    )


def _create(
    options: ExtractOptions,
    manifest: Manifest,
    plan: BlockPlan,
    unembedding: Unembedding,
    pairs: TokenizedPairs,
) -> CacheWriter:
    stored = {}
    if options.logits == "factored":
        stored["weight"] = to_stored(unembedding.weight.to(TORCH_DTYPES[options.dtype]))
        if unembedding.bias is not None:
            stored["bias"] = to_stored(unembedding.bias.to(TORCH_DTYPES[options.dtype]))
    return CacheWriter.create(
        options.output,
        manifest,
        plan,
        {"pair_id": pairs.pair_id, "prompt_id": pairs.prompt_id, "source_row": pairs.source_row},
        stored,
    )


def _run_blocks(forward: BlockForward, writer: CacheWriter, plan: BlockPlan) -> int:
    """Compute and write every missing block; a thread writes while the next block runs."""
    missing = [block for block in range(plan.blocks) if block not in writer.committed]
    pairs = sum(len(plan.pairs_of(block)) for block in missing)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="writer") as pool,
        progress_bar(pairs, "Extracting", "pair") as bar,
    ):
        writing: Future[None] | None = None
        for block in missing:
            rows = forward.run(block, bar.update)
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.write_block, block, len(plan.pairs_of(block)), rows)
        if writing is not None:
            writing.result()
    return pairs


def _report(writer: CacheWriter, done: int, seconds: float, shared: bool | None) -> ExtractReport:
    return ExtractReport(
        manifest=writer.manifest,
        pairs_done=done,
        seconds=seconds,
        shared_prompt=shared,
        stored_bytes=stored_bytes(writer.root),
    )
