"""The manifest and the block plan that follow from an extraction's options and its pairs."""

import dataclasses
from typing import Final

import numpy as np

from mav.cache_schema.arrays import bytes_per_token
from mav.cache_schema.choices import StoredDtype
from mav.cache_schema.manifest import (
    FORMAT_VERSION,
    BaseModelRecord,
    LogitsRecord,
    Manifest,
    PlanRecord,
    StatesRecord,
    StorageRecord,
)
from mav.cache_schema.plan import BlockPlan, default_block_tokens, plan_blocks
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.head.config import default_pooled_size
from mav.pipeline.preferences.load import ReadData
from mav.pipeline.runtime.versions import package_versions

_PACKAGES: Final = ("mav-align", "torch", "transformers", "zarr")


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
