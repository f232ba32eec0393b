"""Prepares an extraction or a dry run: reads pairs, loads and checks the base, plans the cache."""

import dataclasses
import datetime
import logging
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from mav.cache_schema.choices import StoredDtype
from mav.cache_schema.errors import MismatchError, UsageError
from mav.cache_schema.manifest import (
    LogitsRecord,
    Manifest,
)
from mav.cache_schema.plan import BlockPlan
from mav.pipeline.base.gguf_copy import find_base
from mav.pipeline.base.model import BaseModel, load_source
from mav.pipeline.base.pretrained import load_config, load_tokenizer
from mav.pipeline.base.source import BaseSource
from mav.pipeline.extraction.batch_size import CPU_TOKENS, BatchBudget, measured_budget
from mav.pipeline.extraction.block_runner import BlockForward
from mav.pipeline.extraction.limits import require_allowed, require_readable
from mav.pipeline.extraction.manifest import draft_manifest
from mav.pipeline.extraction.model_checks import check_base
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.extraction.packing import even_batches
from mav.pipeline.head.config import PUBLISHED_POOLED_SIZE
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.ops.tensor_storage import require_holds, to_stored
from mav.pipeline.preferences.chat_template import parse_date, uses_date
from mav.pipeline.preferences.load import ReadData, read_data
from mav.pipeline.runtime.choices import DtypeName
from mav.pipeline.runtime.compute_dtype import (
    AUTO,
    TORCH_DTYPES,
    dtype_name,
    pick_dtype,
)
from mav.pipeline.runtime.devices import pick_device
from mav.pipeline.runtime.distributed import Processes, launched_here
from mav.pipeline.runtime.load_options import LoadOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractionInputs:
    """Base, tokenizer and processes, before any data is read.

    Attributes:
        processes: The processes that were launched together.
        device: Where this one computes.
        base: The base, where the caller has loaded it.
        source: Where to load it from otherwise.
        tokenizer: The base's tokenizer.
        config: The configuration of the base's text decoder.
    """

    processes: Processes
    device: str
    base: BaseModel | None
    source: BaseSource | None
    tokenizer: Any
    config: Any


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """A prepared extraction: manifest, plan, data and forward pass.

    Attributes:
        manifest: The manifest of the cache, not yet complete.
        plan: Its block plan.
        data: The tokenized pairs.
        unembedding: The base's output embedding.
        forward: Computes the rows of any pairs.
    """

    manifest: Manifest
    plan: BlockPlan
    data: ReadData
    unembedding: Unembedding
    forward: BlockForward


def prepare(options: ExtractOptions, base: BaseModel | None) -> ExtractionInputs:
    """Find the base and join the other processes.

    Raises:
        UsageError: The options do not fit each other, the base or the machine.
        BaseModelError: The base cannot be found.
    """
    if base is not None:
        _require_as_loaded(options, base)
    if options.device_map is not None and launched_here() > 1:
        raise UsageError(
            f"device_map: got {options.device_map!r} with {launched_here()} processes on this "
            f"machine, which would all spread a base over the same devices; launch one per machine"
        )
    device = pick_device(options.device)
    processes = Processes(on_cpu=device.type == "cpu")
    if processes.count > 1 and options.device == "auto" and device.type != "cpu":
        device = pick_device(f"{device.type}:{processes.local_rank}")
    source = None
    if base is None:
        source = find_base(
            options.base_model,
            options.gguf_file,
            options.revision,
            gguf_cache=options.gguf_cache,
        )
        config, tokenizer = load_config(source), load_tokenizer(source)
    else:
        tokenizer, config = base.tokenizer, base.config
    require_allowed(options, config)
    return ExtractionInputs(
        processes=processes,
        device=str(device),
        base=base,
        source=source,
        tokenizer=tokenizer,
        config=config,
    )


def _require_as_loaded(options: ExtractOptions, base: BaseModel) -> None:
    """Refuse loading options that contradict a base that is loaded already."""
    for name in ("quantize", "device_map", "gguf_file", "revision"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{name}: the base that was given is loaded already, so load it that way, or leave "
                f"it to `base_model`"
            )
    if options.dtype not in (AUTO, dtype_name(base.dtype, "base")):
        raise UsageError(
            f"dtype: asked for {options.dtype}, but the base that was given computes in "
            f"{dtype_name(base.dtype)}; load it in the type to compute in, and leave dtype out"
        )


def read(options: ExtractOptions, tokenizer: Any, stored: Manifest | None) -> ReadData:
    """Read and tokenize the preference pairs that are asked for; see `read_data`.

    Args:
        options: What is asked for.
        tokenizer: The base's.
        stored: The manifest of a cache that exists already, whose template date still applies.

    Raises:
        UsageError: A date is given to a template that does not ask for it.
    """
    return read_data(
        options.sources,
        tokenizer,
        max_length=options.max_length,
        form=options.prompt_form,
        date=_template_date(options, tokenizer, stored),
    )


def _template_date(
    options: ExtractOptions, tokenizer: Any, stored: Manifest | None
) -> datetime.date | None:
    """Return the date the chat template is given, or None where it asks for none."""
    if options.prompt_form != "chat" or not uses_date(tokenizer):
        if options.template_date is not None:
            raise UsageError(
                f"template_date: got {options.template_date}, but the prompts do not ask for a "
                f"date; leave it out"
            )
        return None
    if options.template_date is not None:
        date = parse_date(options.template_date)
    elif stored is not None:
        kept = stored.text.template_date
        return None if kept is None else parse_date(kept)
    else:
        date = parse_date("today")
    _log.info(f"The chat template asks for the date; it gets {date}, which is kept in the cache")
    return date


def require_begun_in(options: ExtractOptions, begun: Manifest, dtype: DtypeName) -> None:
    """Refuse to compute the rest of a cache in another type than it was begun in, unless asked.

    Args:
        options: What is asked for.
        begun: The manifest of the cache that is there.
        dtype: Type to compute in; `auto` is always right.

    Raises:
        MismatchError: It was begun in another one.
    """
    own = begun.states.compute_dtypes
    if dtype in (AUTO, *own) or options.allow_dtype_mismatch:
        return
    if options.dtype == AUTO:
        remedy = f"Give a base that computes in {own[-1]}"
    else:
        remedy = f"Leave out `dtype` to go on in {own[-1]}"
    raise MismatchError(
        f"{options.output}: this cache was computed in {' and '.join(own)}, but {dtype} was asked "
        f"for, which rounds otherwise. {remedy}, add `allow_dtype_mismatch=True` to have the rest "
        f"in {dtype}, or name another `output`."
    )


def choose_dtype(
    options: ExtractOptions, inputs: ExtractionInputs, begun: Manifest | None
) -> StoredDtype:
    """Return the type to compute in: the given one, that of the existing cache, or the device's.

    Args:
        options: What is asked for.
        inputs: What is known before the base is loaded.
        begun: The manifest of the cache to continue.

    Raises:
        MismatchError: The base that was given computes in another type than the cache.
    """
    if inputs.base is not None:
        asked = dtype_name(inputs.base.dtype, "base")
        if begun is not None:
            require_begun_in(options, begun, asked)
    elif options.dtype == AUTO and begun is not None:
        asked = begun.states.compute_dtypes[-1]
        _log.info(f"Computing in {asked}, in which the cache was begun")
    else:
        asked = dtype_name(options.dtype)
    name = dtype_name(pick_dtype(asked, inputs.device, spread=bool(options.device_map)))
    assert name != AUTO
    return name


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
        MAVError: The base cannot be loaded, or does not behave as extraction needs.
    """
    base = inputs.base
    require_readable(options.base_model, data.pairs, inputs.config)
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
            ),
            inputs.tokenizer,
        )
    unembedding = base.unembedding()
    record = base.fingerprint()
    manifest, plan = draft_manifest(options, record, _logits_record(unembedding), data, dtype)
    if options.pooled_size is None:
        _log.info(_told_width(manifest))
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
        _log.info(f"Batches of up to {forward.budget.tokens:,} tokens, by the memory that is free")
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
    found = {"weight": to_stored(job.unembedding.weight.to(dtype))}
    if job.unembedding.bias is not None:
        found["bias"] = to_stored(job.unembedding.bias.to(dtype))
    return found


def _told_width(manifest: Manifest) -> str:
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
