"""Prepares an extraction or a dry run: reads pairs, loads and checks the base, plans the cache."""

import dataclasses
import datetime
import logging
from dataclasses import dataclass
from typing import Any

from mav.cache_schema.choices import StoredDtype
from mav.cache_schema.errors import MismatchError, UsageError
from mav.cache_schema.manifest import (
    Manifest,
)
from mav.pipeline.base.gguf_copy import resolve_with_copy
from mav.pipeline.base.given.wrap import loaded_base, require_as_loaded
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.pretrained import load_config, load_tokenizer
from mav.pipeline.base.source import BaseSource
from mav.pipeline.extraction.limits import require_allowed
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.chat_template import parse_date, uses_date
from mav.pipeline.preferences.load import ReadData, read_data
from mav.pipeline.runtime.choices import DtypeName
from mav.pipeline.runtime.compute_dtype import (
    AUTO,
    dtype_name,
    pick_dtype,
)
from mav.pipeline.runtime.devices import pick_device
from mav.pipeline.runtime.distributed import Processes, launched_here

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractionInputs:
    """Base, tokenizer and processes, before any data is read.

    Attributes:
        processes: The processes that were launched together.
        device: Where this process computes.
        base: The base, if the caller has loaded it.
        source: Otherwise, where to load it from.
        tokenizer: The base's tokenizer.
        config: The configuration of the base's text decoder.
    """

    processes: Processes
    device: str
    base: BaseModel | None
    source: BaseSource | None
    tokenizer: Any
    config: Any


def given_base(options: ExtractOptions, base: Any) -> tuple[ExtractOptions, BaseModel | None]:
    """Return the options with the base's name, and the base if it is loaded already.

    Args:
        options: What is asked for, perhaps of a loaded model.
        base: A loaded base that counts instead; None of none.

    Raises:
        MAVError: It cannot be a base, or has no tokenizer.
    """
    given = options.base_model if base is None else base
    loaded = loaded_base(given, options.tokenizer)
    name = str(given) if loaded is None else loaded.id
    return dataclasses.replace(options, base_model=name, tokenizer=None), loaded


def prepare(options: ExtractOptions, base: BaseModel | None) -> ExtractionInputs:
    """Find the base and join the other processes.

    Raises:
        UsageError: The options contradict each other, the base or the machine.
        BaseModelError: The base is not found.
    """
    if base is not None:
        require_as_loaded(options, base)
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
        source = resolve_with_copy(
            str(options.base_model),
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


def read(options: ExtractOptions, tokenizer: Any, stored: Manifest | None) -> ReadData:
    """Read and tokenize the preference pairs that are asked for; see `read_data`.

    Args:
        options: What is asked for.
        tokenizer: The base's.
        stored: The manifest of a cache that exists already, whose template date still applies.

    Raises:
        UsageError: A date is given, but the template does not use one.
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
        f"for, which rounds differently. {remedy}, add `allow_dtype_mismatch=True` to compute the "
        f"rest in {dtype}, or name another `output`."
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
        MismatchError: The given base computes in another type than the cache.
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
