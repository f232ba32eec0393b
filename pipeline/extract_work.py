"""What every extraction, real or dry, prepares: the pairs, the plan, the base, checked."""

import dataclasses
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from cache_schema.errors import UsageError
from cache_schema.manifest import LogitsRecord, Manifest
from cache_schema.plan import BlockPlan
from pipeline.base_checks import check_base
from pipeline.base_limits import require_allowed, require_readable
from pipeline.base_logits import Unembedding
from pipeline.base_model import BaseModel, Placement, load_source
from pipeline.base_source import BaseSource
from pipeline.batch_budget import CPU_TOKENS, BatchBudget, measured_budget
from pipeline.block_forward import BlockForward
from pipeline.chat_template import parse_date, uses_date
from pipeline.devices import pick_device
from pipeline.extract_options import ExtractOptions, draft_manifest
from pipeline.gguf_copy import find_base
from pipeline.packing import even_batches
from pipeline.pretrained import load_config, load_tokenizer
from pipeline.processes import Processes, launched_here
from pipeline.read_data import ReadData, read_data
from pipeline.stored import TORCH_DTYPES, to_stored

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
        config: The configuration of the base's text decoder.
    """

    processes: Processes
    device: str
    base: BaseModel | None
    source: BaseSource | None
    tokenizer: Any
    config: Any


@dataclass(frozen=True, kw_only=True)
class Work:
    """An extraction that is ready to run.

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


def prepare(options: ExtractOptions, base: BaseModel | None, say: Say) -> Request:
    """Find the base and join the other processes.

    Raises:
        UsageError: The options do not fit each other, the base or the machine.
        BaseModelError: The base cannot be found.
    """
    if base is not None:
        _require_as_loaded(options, base)
    if options.device_map is not None and launched_here() > 1:
        raise UsageError(
            f"--device-map: got {options.device_map!r} with {launched_here()} processes on this "
            f"machine, which would all spread a base over the same devices; launch one a machine"
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
            say=say,
        )
        config, tokenizer = load_config(source), load_tokenizer(source)
    else:
        tokenizer, config = base.tokenizer, base.config
    require_allowed(options, config)
    return Request(
        processes=processes,
        device=str(device),
        base=base,
        source=source,
        tokenizer=tokenizer,
        config=config,
    )


def _require_as_loaded(options: ExtractOptions, base: BaseModel) -> None:
    """Refuse to be told how to load a base that is loaded, or otherwise than it is."""
    for name in ("quantize", "device_map", "gguf_file", "revision"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{name}: the base that was given is loaded already, so load it that way, or leave "
                f"it to base_model"
            )
    if base.dtype != TORCH_DTYPES[options.dtype]:
        raise UsageError(
            f"dtype: asked for {options.dtype}, but the base that was given computes in "
            f"{base.dtype}; states are stored as they are computed, so give both the same"
        )


def read(options: ExtractOptions, tokenizer: Any, stored: Manifest | None, say: Say) -> ReadData:
    """Read and tokenize the preference pairs that are asked for; see `read_data`.

    Args:
        options: What is asked for.
        tokenizer: The base's.
        stored: The manifest of a cache that is begun already, whose template date holds on.
        say: Called with each line worth telling the user.

    Raises:
        UsageError: A date is given to a template that does not ask for it.
    """
    return read_data(
        options.sources,
        tokenizer,
        max_length=options.max_length,
        form=options.prompt_form,
        date=_template_date(options, tokenizer, stored, say),
        say=say,
    )


def _template_date(
    options: ExtractOptions, tokenizer: Any, stored: Manifest | None, say: Say
) -> datetime.date | None:
    """Return the day that the chat template is told, or None where it does not ask."""
    if options.prompt_form != "chat" or not uses_date(tokenizer):
        if options.template_date is not None:
            raise UsageError(
                f"--template-date: got {options.template_date}, but the prompts do not ask for a "
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
    say(f"The chat template asks for the date; it is told {date}, which the cache keeps")
    return date


def load(options: ExtractOptions, request: Request, data: ReadData, say: Say) -> Work:
    """Load the base, check it, and plan the cache.

    Raises:
        MAVError: The base cannot be loaded, or does not behave as extraction needs.
    """
    base = request.base
    require_readable(options.base_model, data.pairs, request.config)
    if base is None:
        assert request.source is not None
        say(f"Loading {request.source.id} in {options.dtype}")
        base = load_source(
            request.source,
            Placement(
                dtype=TORCH_DTYPES[options.dtype],
                device=request.device,
                device_map=options.device_map,
                quantize=options.quantize,
            ),
            request.tokenizer,
            say=say,
        )
    unembedding = base.unembedding()
    manifest, plan = draft_manifest(options, base.record(), _logits_record(unembedding), data)
    verdict = check_base(
        base,
        data.pairs,
        manifest.states.layers,
        options.max_length,
        must_factor=options.logits == "factored",
        say=say,
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
        say(f"Batches of up to {forward.budget.tokens:,} tokens, by the memory that is free")
    return Work(manifest=manifest, plan=plan, data=data, unembedding=unembedding, forward=forward)


def _measured(
    forward: BlockForward, plan: BlockPlan, data: ReadData, devices: list[torch.device]
) -> BatchBudget:
    """Find how many tokens go through at once by running one batch of the first block."""
    first = even_batches(plan.pairs_of(0), data.pairs.shared_length, CPU_TOKENS)[0]
    tokens = int(data.pairs.shared_length[first.start : first.stop].sum())
    return measured_budget(devices, tokens, lambda: forward.run(first, lambda _: None))


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
