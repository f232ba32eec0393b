"""Manifests of caches that no test writes."""

import dataclasses
from typing import Any

from mav.cache_schema.manifest import (
    FORMAT_VERSION,
    BaseModelRecord,
    DataRecord,
    LogitsRecord,
    Manifest,
    PlanRecord,
    SourceRecord,
    StatesRecord,
    StorageRecord,
    TextRecord,
)


def llama_7b(**changes: Any) -> Manifest:
    """A cache of 20 pairs from LLaMA-2-7B; records named in `changes` are replaced."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_by={"mav": "0.1.0"},
        base=BaseModelRecord(
            id="meta-llama/Llama-2-7b-hf",
            revision="01c7f73d771dfac7d292323805ebc428287df4f9",
            gguf_file=None,
            quantization=None,
            architecture="LlamaForCausalLM",
            weights_digest="aa" * 32,
            config_digest="ee" * 32,
            tokenizer_digest="bb" * 32,
            num_hidden_layers=32,
            hidden_size=4096,
            vocab_size=32000,
            eos_token_id=2,
            parameters=6_738_415_616,
        ),
        states=StatesRecord(
            layer_selection="auto",
            layers=(1, 16, 32),
            pooled_size=4096,
            stored_width=4096,
            dtype="bfloat16",
            computed_in=("bfloat16", "float32"),
        ),
        logits=LogitsRecord(
            encoding="factored", scale=1.0, softcap=None, has_bias=False, top_k=None
        ),
        text=TextRecord(
            prompt_template="\n\nHuman: {prompt}\n\nAssistant:",
            max_length=512,
            truncation="keep_response_and_prompt_end",
        ),
        data=DataRecord(
            sources=(
                SourceRecord(
                    id="Anthropic/hh-rlhf",
                    data_dir="harmless-base",
                    split="train",
                    limit=None,
                    weight=None,
                    held_out=False,
                    rows=23,
                    pairs=20,
                    fingerprint="cc" * 32,
                    dropped={"empty_response": 1, "prompts_differ": 2},
                ),
            ),
            fingerprint="cc" * 32,
            prompts_truncated=1,
            responses_cut=0,
        ),
        plan=PlanRecord(block_tokens=8192, blocks=2, tokens=9000, digest="dd" * 32),
        storage=StorageRecord(compression="none", states="computed"),
        checks={"layers": 0.0},
        complete=True,
    )
    return dataclasses.replace(manifest, **changes)


def changed(record: str, **fields: Any) -> Manifest:
    """LLaMA-2-7B's manifest with some fields of one record changed."""
    manifest = llama_7b()
    return dataclasses.replace(
        manifest, **{record: dataclasses.replace(getattr(manifest, record), **fields)}
    )
