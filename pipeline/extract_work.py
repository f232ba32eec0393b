"""What every extraction, real or dry, prepares: the pairs, the plan, the base, checked."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from cache_schema.errors import DataError, UsageError
from cache_schema.manifest import LogitsRecord, Manifest
from cache_schema.plan import BlockPlan
from pipeline.base_checks import check_base
from pipeline.base_logits import Unembedding
from pipeline.base_model import BaseModel, Placement, load_source, load_tokenizer
from pipeline.base_source import BaseSource, resolve_base
from pipeline.block_forward import BlockForward
from pipeline.devices import pick_device
from pipeline.extract_options import ExtractOptions, draft_manifest
from pipeline.preferences import ReadCounts, read_pairs
from pipeline.processes import Processes
from pipeline.progress import progress_bar
from pipeline.stored import TORCH_DTYPES, to_stored
from pipeline.tokenizing import TokenizedPairs, tokenize_pairs

_CPU_BATCH_TOKENS: Final = 2048
_ACCELERATOR_BATCH_TOKENS: Final = 16384

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is known before any data is read.

    Attributes:
        processes: The processes that were launched together.
        device: Where this one computes.
        base: The base, where the caller has loaded it.
        source: Where to load it from otherwise.
        tokenizer: The base's tokenizer.
    """

    processes: Processes
    device: str
    base: BaseModel | None
    source: BaseSource | None
    tokenizer: Any


@dataclass(frozen=True, kw_only=True)
class Work:
    """An extraction that is ready to run.

    Attributes:
        manifest: The manifest of the cache, not yet complete.
        plan: Its block plan.
        pairs: The tokenized pairs.
        unembedding: The base's output embedding.
        forward: Computes the rows of any pairs.
    """

    manifest: Manifest
    plan: BlockPlan
    pairs: TokenizedPairs
    unembedding: Unembedding
    forward: BlockForward


def prepare(options: ExtractOptions, base: BaseModel | None) -> Request:
    """Find the base and join the other processes.

    Raises:
        UsageError: The options do not fit each other, the base or the machine.
        BaseModelError: The base cannot be found.
    """
    if base is not None and base.dtype != TORCH_DTYPES[options.dtype]:
        raise UsageError(
            f"dtype: asked for {options.dtype}, but the base that was given computes in "
            f"{base.dtype}; states are stored as they are computed, so give both the same"
        )
    device = pick_device(options.device)
    processes = Processes(on_cpu=device.type == "cpu")
    if processes.count > 1 and options.device == "auto" and device.type != "cpu":
        device = pick_device(f"{device.type}:{processes.local_rank}")
    source = None if base else resolve_base(options.base_model, options.gguf_file, options.revision)
    if base is None:
        assert source is not None
        tokenizer = load_tokenizer(source)
    else:
        tokenizer = base.tokenizer
    return Request(
        processes=processes, device=str(device), base=base, source=source, tokenizer=tokenizer
    )


def read_and_tokenize(
    options: ExtractOptions, tokenizer: Any, say: Say
) -> tuple[TokenizedPairs, ReadCounts]:
    """Read the preference pairs and tokenize them, and tell what was left out.

    Raises:
        DataError: There is no usable pair.
    """
    counts = ReadCounts()
    with progress_bar(None, "Tokenizing", "pair") as bar:
        pairs = tokenize_pairs(
            read_pairs(options.data, counts),
            tokenizer,
            options.max_length,
            bar.update,
            form=options.prompt_form,
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


def load(
    options: ExtractOptions, request: Request, pairs: TokenizedPairs, counts: ReadCounts, say: Say
) -> Work:
    """Load the base, check it, and plan the cache.

    Raises:
        MAVError: The base cannot be loaded, or does not behave as extraction needs.
    """
    base = request.base
    if base is None:
        assert request.source is not None
        say(f"Loading {request.source.id} in {options.dtype}")
        base = load_source(
            request.source, Placement(dtype=TORCH_DTYPES[options.dtype], device=request.device)
        )
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
    manifest = dataclasses.replace(manifest, checks=verdict.errors)
    forward = BlockForward(
        base,
        pairs,
        plan,
        manifest,
        unembedding if verdict.factored else None,
        packing=verdict.packing,
        batch_tokens=options.batch_tokens
        or (_CPU_BATCH_TOKENS if base.device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS),
    )
    return Work(manifest=manifest, plan=plan, pairs=pairs, unembedding=unembedding, forward=forward)


def unembedding_arrays(work: Work) -> dict[str, NDArray[Any]]:
    """Return what the cache keeps of the output embedding, as stored."""
    if work.manifest.logits.encoding != "factored":
        return {}
    dtype = TORCH_DTYPES[work.manifest.states.dtype]
    found = {"weight": to_stored(work.unembedding.weight.to(dtype))}
    if work.unembedding.bias is not None:
        found["bias"] = to_stored(work.unembedding.bias.to(dtype))
    return found


def _logits_record(unembedding: Unembedding) -> LogitsRecord:
    return LogitsRecord(
        encoding="factored",
        scale=unembedding.scale,
        softcap=unembedding.softcap,
        has_bias=unembedding.bias is not None,
        top_k=None,
    )
