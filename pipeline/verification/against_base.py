"""Runs pairs of a cache through the live base again and compares.

Each response is run apart, in one unpadded sequence through the whole model, with all hidden states
kept: nothing of what extraction does to be fast is shared.

Shape legend: N tokens of a response, K stored layers, V vocabulary.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mav.cache_schema.errors import DataError, MismatchError, UsageError
from mav.cache_schema.manifest import Manifest, SourceRecord
from mav.cache_schema.portable import portable_name
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.addresses import is_remote
from mav.pipeline.base.find_base import find_base
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.loading import load_source
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.quantization import quantize_as
from mav.pipeline.base.source import resolve_base, tokenizer_digest
from mav.pipeline.extraction.model_checks import relative_error, reordering_tolerance
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.tensor_storage import pool_states
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.preferences.prompt_format import prompt_format_of
from mav.pipeline.preferences.reader import PreferencePair, ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DEFAULT_SPLIT, DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.runtime.compute_dtype import AUTO, TORCH_DTYPES, dtype_name
from mav.pipeline.runtime.known_places import recall
from mav.pipeline.runtime.load_options import LoadOptions
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.verification.options import VerifyOptions

_log = logging.getLogger(__name__)

LOSS: Final = {"computed": 0.0, "int8": 0.02, "fp8": 0.05}
"""Relative error that quantization of states may add."""


@dataclass(frozen=True, kw_only=True)
class BaseComparison:
    """Errors of the cached values against the live base.

    Attributes:
        pairs: Pairs that were run.
        tolerance: Largest relative error (Frobenius norm over a response) that counts as equal.
        errors: Largest relative error met, by what was compared; infinite where values are wrong
            beyond measure.
        differing: Pair -> what differs beyond the tolerance.
    """

    pairs: int
    tolerance: float
    errors: dict[str, float]
    differing: dict[int, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        return {
            "pairs": self.pairs,
            "tolerance": self.tolerance,
            # JSON has no infinity.
            "errors": {n: e if math.isfinite(e) else None for n, e in self.errors.items()},
            "differing": self.differing,
        }


def verify_against_base(options: VerifyOptions, base: BaseModel | None = None) -> BaseComparison:
    """Compare pairs spread over a cache with the live base.

    Args:
        options: The cache, how many pairs to run, and where base and data are now.
        base: A loaded base to use in place of `base_model`.

    Raises:
        MAVError: Cache, base or data are missing, or the base or data are not those of the cache.
    """
    assert options.against_base is not None
    reader = CacheReader(options.cache)
    manifest = reader.manifest
    if base is None:
        base = _load(reader, options)
    wanted = np.unique(
        np.linspace(0, len(reader.pair_id) - 1, options.against_base).round().astype(int)
    )
    pairs = _tokenize(reader, wanted, options.datasets, base)
    _require_same_tokens(reader, pairs, base)
    cached = CachedBase(reader, torch.device("cpu"), torch.float32)
    tolerance = _tolerance(manifest, base)
    errors: dict[str, float] = {}
    differing: dict[int, str] = {}
    block = reader.read_block(0)
    with progress_bar(len(wanted), "Running the base", "pair") as bar:
        for pair in wanted.tolist():
            if pair not in block.pairs:
                at = int(np.searchsorted(reader.plan.block_start, pair, side="right")) - 1
                block = reader.read_block(at)
            batch = collate([(block, pair - block.pairs.start)], manifest, 1)
            live = int(np.searchsorted(pairs.pair_id, reader.pair_id[pair]))
            for name, error in _compare(base, pairs, live, batch, cached).items():
                errors[name] = max(errors.get(name, 0.0), error)
                if error > tolerance:
                    known = f"{differing[pair]}; " if pair in differing else ""
                    differing[pair] = f"{known}{name}: relative error {error:.2g}"
            bar.update()
    return BaseComparison(
        pairs=len(wanted), tolerance=tolerance, errors=errors, differing=differing
    )


def _near(reader: CacheReader) -> Path | None:
    return None if is_remote(reader.location) else Path(reader.location)


def _load(reader: CacheReader, options: VerifyOptions) -> BaseModel:
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


def _tolerance(manifest: Manifest, base: BaseModel) -> float:
    """Return the tolerance: that of the coarsest type computed, stored or compared in."""
    states = manifest.states
    used = {TORCH_DTYPES[name] for name in (states.dtype, *states.compute_dtypes)} | {base.dtype}
    return (
        max(reordering_tolerance(dtype, manifest.base.quantization) for dtype in used)
        + LOSS[manifest.storage.states]
    )


def _tokenize(
    reader: CacheReader, wanted: Any, datasets: Sequence[str], base: BaseModel
) -> TokenizedPairs:
    ids = set(reader.pair_id[wanted].tolist())
    found: dict[int, PreferencePair] = {}
    sources = _sources(reader, datasets)
    for source in sources:
        for pair in read_pairs(source, ReadCounts()):
            if pair.pair_id in ids:
                found.setdefault(pair.pair_id, pair)
    if len(found) != len(ids):
        raise DataError(
            f"{', '.join(source.name for source in sources)}: of the {len(ids)} pairs that are to "
            f"be compared {len(found)} are there. Name the data sets of the cache with "
            f"`datasets`."
        )
    text = reader.manifest.text
    return tokenize_pairs(
        found.values(),
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
    found = []
    places = datasets or [_find_data(record, reader) for record in records]
    for record, place in zip(records, places, strict=True):
        is_file = Path(place).is_file()
        found.append(
            DataSource(
                id=place,
                data_dir=None if is_file else record.data_dir,
                split=DEFAULT_SPLIT if is_file else record.split,
                # A file that stands for the data set may have its rows in another order.
                limit=None if datasets and place != record.id else record.limit,
            )
        )
    return found


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


def _require_same_tokens(reader: CacheReader, pairs: TokenizedPairs, base: BaseModel) -> None:
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


@torch.inference_mode()
def _compare(
    base: BaseModel, pairs: TokenizedPairs, number: int, batch: Batch, cached: CachedBase
) -> dict[str, float]:
    """Return the relative errors of one pair, the worse of its two responses each."""
    manifest = cached.manifest
    errors: dict[str, float] = {}
    prompt, *responses = pairs.parts(number)
    for response, start in zip(responses, batch.offsets.tolist(), strict=False):
        part = slice(start, start + len(response))
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        output = base.model(
            input_ids=ids[None].to(base.device),
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
        )
        predicting = slice(len(prompt) - 1, len(ids) - 1)
        states_NKW = torch.stack(
            [
                pool_states(
                    output.hidden_states[layer][0, predicting], manifest.states.stored_width
                ).cpu()
                for layer in manifest.states.layers
            ],
            dim=1,
        )
        logits_NV = output.logits[0, predicting].float().cpu()
        label_N1 = ids[len(prompt) :, None]
        logprobs_N = logits_NV.log_softmax(-1).gather(-1, label_N1)[:, 0]
        same_labels = torch.equal(batch.labels[part].long(), label_N1[:, 0])
        found = {
            "labels": 0.0 if same_labels else float("inf"),
            **_by_layer(manifest, batch.states[part], states_NKW),
        }
        if batch.base_logprobs is not None:
            found["base_logprobs"] = relative_error(batch.base_logprobs[part], logprobs_N)
        # Of a few largest logits only those can be compared, and the log-probabilities are.
        if manifest.logits.encoding != "topk":
            kept_NV = cached.logits(batch).chunk(part.start, part.stop)
            found["logits"] = relative_error(kept_NV, logits_NV)
        for name, error in found.items():
            # A NaN is neither larger nor smaller than anything.
            worst = float("inf") if math.isnan(error) else error
            errors[name] = max(errors.get(name, 0.0), worst)
    return errors


def _by_layer(manifest: Manifest, got_NKW: Tensor, want_NKW: Tensor) -> dict[str, float]:
    return {
        f"layer {layer}": relative_error(got_NKW[:, place], want_NKW[:, place])
        for place, layer in enumerate(manifest.states.layers)
    }
