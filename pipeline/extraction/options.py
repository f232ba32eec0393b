"""Options of an extraction, and the manifest and plan that follow from them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np

from mav.cache_schema.arrays import bytes_per_token
from mav.cache_schema.codecs import Compression
from mav.cache_schema.errors import UsageError
from mav.cache_schema.manifest import (
    FORMAT_VERSION,
    BaseModelRecord,
    LogitsEncoding,
    LogitsRecord,
    Manifest,
    PlanRecord,
    StatesRecord,
    StorageRecord,
    StoredDtype,
)
from mav.cache_schema.plan import BlockPlan, default_block_tokens, plan_blocks
from mav.cache_schema.quantization import StatesStorage
from mav.pipeline.base.layer_selection import parse_indices, select_layers
from mav.pipeline.base.model import DeviceMap
from mav.pipeline.base.quantization import Quantize
from mav.pipeline.head.config import default_pooled_size
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.preferences.load import ReadData
from mav.pipeline.preferences.prompt_format import Form
from mav.pipeline.preferences.sources import DataSource, require_weights
from mav.pipeline.runtime.compute_dtype import AUTO, Dtype, dtype_name
from mav.pipeline.runtime.versions import package_versions

StorageDtype = Literal["bfloat16", "float16", "float32", "int8", "fp8"]

_PACKAGES: Final = ("mav-align", "torch", "transformers", "zarr")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What `mav extract` is asked for.

    Attributes:
        base_model: Hub id, folder or `.gguf` file.
        data: The preference pairs: a data set, or several.
        output: Folder or URL of the cache.
        gguf_file: File inside the base's folder or repository.
        revision: Branch, tag or commit of a hub repository.
        layer_selection: `auto`, `uniform`, or indices such as `1,15,30`.
        num_layers: How many layers `uniform` takes.
        pooled_size: Width the states are pooled to; the base's, 4,096 at most, if None.
        max_length: Most tokens of a prompt with one response.
        prompt_form: `hh`, HH-RLHF's transcript, or `chat`, the base's chat template.
        template_date: Date given to a chat template that asks for it, as YYYY-MM-DD or
            `today`; that of a cache which is begun, else today, if None.
        logits: How base logits are stored.
        top_k: Logits kept per token with `topk`.
        dtype: Type the base computes in; `auto` is what a begun cache was computed in, or what the
            device multiplies natively. A name or torch's type.
        allow_dtype_mismatch: Go on with a cache that was begun in another type than `dtype`.
        device: `auto` or a torch device.
        device_map: How the base is spread over several devices; see `LoadOptions`.
        quantize: How the base's weights are quantized when they are loaded.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.
        batch_tokens: Most tokens in one forward pass, padding included, or None for what the
            memory that is free allows.
        block_tokens: Response tokens in a block, or None to choose by size.
        compression: Lossless compression of what is stored.
        storage_dtype: Type states are stored in, whatever they are computed in; `int8` and `fp8`
            are lossy, in one byte per value, and restored to bfloat16.
    """

    base_model: str
    data: DataSource | tuple[DataSource, ...]
    output: str | Path
    gguf_file: str | None = None
    revision: str | None = None
    layer_selection: str = "auto"
    num_layers: int = 3
    pooled_size: int | None = None
    max_length: int = 512
    prompt_form: Form = "hh"
    template_date: str | None = None
    logits: LogitsEncoding = "factored"
    top_k: int = 64
    dtype: Dtype = AUTO
    allow_dtype_mismatch: bool = False
    device: str = "auto"
    device_map: DeviceMap | None = None
    quantize: Quantize | None = None
    gguf_cache: bool = True
    batch_tokens: int | None = None
    block_tokens: int | None = None
    compression: Compression = "none"
    storage_dtype: StorageDtype = "bfloat16"

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--max-length", self.max_length, 8),
            ("--pooled-size", self.pooled_size, 1),
            ("--top-k", self.top_k, 1),
            ("--batch-tokens", self.batch_tokens, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name}: got {value}, expected at least {least}")
        for name, chosen, known in (
            ("--prompt-form", self.prompt_form, get_args(Form)),
            ("--logits", self.logits, get_args(LogitsEncoding)),
            ("--quantize", self.quantize, (None, *get_args(Quantize))),
            ("--compression", self.compression, get_args(Compression)),
            ("--storage-dtype", self.storage_dtype, get_args(StorageDtype)),
        ):
            if chosen not in known:
                listed = ", ".join(str(one) for one in known if one is not None)
                raise UsageError(f"{name}: got {chosen!r}, expected one of {listed}")
        if self.template_date is not None:
            parse_date(self.template_date)
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if not str(self.output):
            raise UsageError("--output: got nothing, expected a folder or a URL")
        if self.layer_selection not in ("auto", "uniform"):
            parse_indices(self.layer_selection)
        if not self.sources:
            raise UsageError("--dataset: got none, expected at least one data set")
        require_weights(self.sources)

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """The data sets."""
        return (self.data,) if isinstance(self.data, DataSource) else self.data

    @property
    def stored_states(self) -> tuple[StoredDtype, StatesStorage]:
        """Type of the states that a reader has, and how they are kept."""
        return states_storage(self.storage_dtype)

    def require_top_k(self, vocab_size: int) -> None:
        """Refuse `top_k` of the vocabulary size or above.

        Raises:
            UsageError: With the vocabulary.
        """
        if self.logits == "topk" and self.top_k >= vocab_size:
            raise UsageError(
                f"--top-k: got {self.top_k}, expected less than the vocabulary, {vocab_size}"
            )


def states_storage(storage: StorageDtype) -> tuple[StoredDtype, StatesStorage]:
    """Return states and storage fields of the manifest for a storage type."""
    if storage == "int8" or storage == "fp8":
        return "bfloat16", storage
    return storage, "computed"


def draft_manifest(
    options: ExtractOptions,
    base: BaseModelRecord,
    unembedding: LogitsRecord,
    data: ReadData,
    computed_in: StoredDtype,
) -> tuple[Manifest, BlockPlan]:
    """Return the manifest, not yet complete, and the plan of the cache that was asked for.

    Args:
        options: What is asked for.
        base: The base model.
        unembedding: Its `scale`, `softcap` and `has_bias`; the encoding is that of the options.
        data: The tokenized pairs, and what became of all rows.
        computed_in: Type the base computes in.

    Raises:
        UsageError: The options do not fit the base.
    """
    layers = select_layers(options.layer_selection, options.num_layers, base.num_hidden_layers)
    options.require_top_k(base.vocab_size)
    pooled_size = options.pooled_size or default_pooled_size(base.hidden_size)
    dtype, states_stored = options.stored_states
    named = options.layer_selection in ("auto", "uniform")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_by=package_versions(_PACKAGES),
        base=base,
        states=StatesRecord(
            layer_selection=options.layer_selection if named else "explicit",
            layers=layers,
            pooled_size=pooled_size,
            stored_width=min(base.hidden_size, pooled_size),
            dtype=dtype,
            computed_in=(computed_in,),
        ),
        logits=LogitsRecord(
            encoding=options.logits,
            scale=unembedding.scale,
            softcap=unembedding.softcap,
            has_bias=unembedding.has_bias,
            top_k=options.top_k if options.logits == "topk" else None,
        ),
        text=data.text,
        data=data.record(),
        plan=PlanRecord(block_tokens=1, blocks=1, tokens=1, digest=data.pairs.digest()),
        storage=StorageRecord(compression=options.compression, states=states_stored),
        checks={},
        complete=False,
    )
    length = data.pairs.response_length
    longest = int(length.sum(axis=1).max())
    block_tokens = options.block_tokens or default_block_tokens(
        bytes_per_token(manifest), longest, int(length.sum(dtype=np.int64))
    )
    plan = plan_blocks(length, block_tokens)
    placed = dataclasses.replace(
        manifest.plan, block_tokens=plan.block_tokens, blocks=plan.blocks, tokens=plan.tokens
    )
    return dataclasses.replace(manifest, plan=placed), plan


def as_begun(options: ExtractOptions, stored: Manifest, data: ReadData) -> ExtractOptions:
    """Keep the block size of an existing cache where the option is left at its default."""
    longest = int(data.pairs.response_length.sum(axis=1).max())
    if options.block_tokens is not None or longest > stored.plan.block_tokens:
        return options
    return dataclasses.replace(options, block_tokens=stored.plan.block_tokens)
