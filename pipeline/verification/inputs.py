"""Finds the base and the pairs that a cache was made from, and refuses any others."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import DataError, MismatchError, UsageError
from mav.cache_schema.manifest import SourceRecord
from mav.cache_schema.portable import portable_name
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.addresses import is_remote
from mav.pipeline.base.find_base import find_base
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.loading import load_source
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.quantization import quantize_as
from mav.pipeline.base.source import resolve_base, tokenizer_digest
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.preferences.prompt_format import prompt_format_of
from mav.pipeline.preferences.reader import PreferencePair, ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DEFAULT_SPLIT, DataSource, parse_source
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.runtime.compute_dtype import AUTO, dtype_name
from mav.pipeline.runtime.known_places import recall
from mav.pipeline.runtime.load_options import LoadOptions
from mav.pipeline.verification.options import VerifyOptions

_log = logging.getLogger(__name__)


def _near(reader: CacheReader) -> Path | None:
    return None if is_remote(reader.location) else Path(reader.location)


def load_base_of(reader: CacheReader, options: VerifyOptions) -> BaseModel:
    """Load the base that a cache was extracted from, in the type it was computed in.

    Raises:
        BaseModelError: It is not found or cannot be loaded.
        MismatchError: The base that was named has other weights or another configuration.
    """
    record, base_model = reader.manifest.base, options.base_model
    own = reader.manifest.states.compute_dtypes[-1]
    placement = LoadOptions(
        dtype=own if options.dtype == AUTO else options.dtype,
        device=options.device,
        device_map=options.device_map,
    ).in_one_dtype()
    if base_model is None:
        source = find_base(record, reader.location, near=_near(reader))
    else:
        # A file is named whole, so it needs no name inside a folder; what is here has no revision.
        inside = None if base_model.endswith(".gguf") else record.gguf_file
        revision = None if Path(base_model).exists() else record.revision
        source = resolve_base(base_model, inside, revision)
    for what, found, stored in (
        ("weights", source.weights_digest(), record.weights_digest),
        ("configuration", source.config_digest(), record.config_digest),
    ):
        if found != stored:
            raise MismatchError(
                f"{source.id}: its {what} (SHA-256 {found[:12]}…) is not that of the base the "
                f"cache was extracted from, {record.id} ({stored[:12]}…). Name that base with "
                f"`base_model`."
            )
    _log.info(f"Loading {source.id} in {dtype_name(placement.dtype)}")
    quantize = quantize_as(record.quantization, source)
    source = with_copy(source, gguf_cache=options.gguf_cache)
    return load_source(source, dataclasses.replace(placement, quantize=quantize))


def tokenize_sampled(
    reader: CacheReader, pairs: NDArray[np.integer[Any]], datasets: Sequence[str], base: BaseModel
) -> TokenizedPairs:
    """Read pairs of a cache from its data sets and tokenize them as the extraction did.

    Args:
        reader: The cache.
        pairs: Their numbers in it.
        datasets: Where its data sets are now; empty for where they were.
        base: The base whose tokenizer is used.

    Raises:
        UsageError: More or fewer data sets are named than the cache has.
        DataError: A data set, or one of the pairs, is not found.
    """
    ids = set(reader.pair_id[pairs].tolist())
    by_id: dict[int, PreferencePair] = {}
    sources = _sources(reader, datasets)
    for source in sources:
        for pair in read_pairs(source, ReadCounts()):
            if pair.pair_id in ids:
                by_id.setdefault(pair.pair_id, pair)
    if len(by_id) != len(ids):
        raise DataError(
            f"{', '.join(source.name for source in sources)}: of the {len(ids)} pairs that are to "
            f"be compared {len(by_id)} are there. Name the data sets of the cache with "
            f"`datasets`."
        )
    text = reader.manifest.text
    return tokenize_pairs(
        by_id.values(),
        base.tokenizer,
        text.max_length,
        form=prompt_format_of(text.prompt_template),
        date=None if text.template_date is None else parse_date(text.template_date),
    )


def _sources(reader: CacheReader, datasets: Sequence[str]) -> list[DataSource]:
    """Return the data sets of a cache, where they are now.

    Raises:
        UsageError: More or fewer are named than the cache has.
        DataError: One that was a file or folder is not found.
    """
    records = reader.manifest.data.sources
    if datasets and len(datasets) != len(records):
        raise UsageError(
            f"datasets: got {len(datasets)}, but the cache has {len(records)} data sets "
            f"({', '.join(record.name for record in records)}); name all of them, in this order"
        )
    sources = []
    places = datasets or [_find_data(record, reader) for record in records]
    for record, named in zip(records, places, strict=True):
        given = parse_source(named, DataSource(), "datasets") if datasets else DataSource(id=named)
        place, is_file = given.id, Path(given.id).is_file()
        if dataclasses.replace(given, columns=None) != DataSource(id=place):
            raise UsageError(f"datasets: got {named!r}, expected a place, and columns= at most")
        sources.append(
            DataSource(
                id=place,
                data_dir=None if is_file else record.data_dir,
                split=DEFAULT_SPLIT if is_file else record.split,
                # A file that stands for the data set may have its rows in another order.
                limit=None if datasets and place != record.id else record.limit,
                columns=given.columns,
            )
        )
    return sources


def _find_data(record: SourceRecord, reader: CacheReader) -> str:
    """Return where a data set of a cache is: a hub id, or a path that is there."""
    near = _near(reader)
    beside = None if near is None else near.resolve().parent / portable_name(record.id)
    for place in (recall(record.fingerprint), Path(record.id), beside):
        if place is not None and place.exists():
            return str(place)
    if "/" in record.id and not Path(record.id).is_absolute():
        return record.id
    raise DataError(
        f"{record.id}: this data set of {reader.location} is not found here. Name it with "
        f"`datasets`{', and all others' if len(reader.manifest.data.sources) > 1 else ''}."
    )


def require_same_tokens(reader: CacheReader, pairs: TokenizedPairs, base: BaseModel) -> None:
    """Refuse a tokenizer that makes other tokens of the pairs than the cache has."""
    lengths = reader.plan.response_length[np.searchsorted(reader.pair_id, pairs.pair_id)]
    digest = tokenizer_digest(base.tokenizer.get_vocab())
    if digest != reader.manifest.base.tokenizer_digest or not np.array_equal(
        pairs.response_length, lengths
    ):
        raise MismatchError(
            f"{base.tokenizer.name_or_path}: its tokenizer is not the one the cache "
            f"{reader.location} was extracted with ({digest[:12]}…, expected "
            f"{reader.manifest.base.tokenizer_digest[:12]}…, or other merges). Name the base of "
            f"the cache with `base_model`."
        )
