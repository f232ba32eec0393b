"""The table of arrays, and what it comes to for a LLaMA-7B."""

import dataclasses

import numpy as np
import pytest

from mav.cache_schema.array_table import TABLE
from mav.cache_schema.arrays import (
    INNER_CHUNK_BYTES,
    bytes_per_token,
    dimension_sizes,
    element_type,
    layouts,
    shard_key,
)
from mav.cache_schema.manifest import Manifest
from tests.support.caches.manifests import changed, llama_7b

_ALWAYS = {
    "hidden_states",
    "labels",
    "pairs/response_start",
    "pairs/response_length",
    "pairs/block_start",
    "pairs/pair_id",
    "pairs/prompt_id",
    "pairs/source",
    "pairs/source_row",
}

FACTORED = llama_7b()
DENSE = changed("logits", encoding="dense")
TOPK = changed("logits", encoding="topk", top_k=64)
POOLED = changed("states", pooled_size=1024, stored_width=1024)
WITHOUT_LAST = changed("states", layers=(1, 8, 16))
WITH_BIAS = changed("logits", has_bias=True)
INT8 = changed("storage", states="int8")
FP8 = changed("storage", states="fp8")
POOLED_INT8 = dataclasses.replace(POOLED, storage=INT8.storage)
POOLED_FP8 = dataclasses.replace(POOLED, storage=FP8.storage)

EVERY_KIND = [
    *[FACTORED, DENSE, TOPK, POOLED, WITHOUT_LAST, WITH_BIAS],
    *[INT8, FP8, POOLED_INT8, POOLED_FP8],
]


@pytest.mark.parametrize(
    ("manifest", "more"),
    [
        (FACTORED, {"unembedding/weight"}),
        (WITH_BIAS, {"unembedding/weight", "unembedding/bias"}),
        (POOLED, {"unembedding/weight", "final_hidden_state"}),
        (WITHOUT_LAST, {"unembedding/weight", "final_hidden_state"}),
        (DENSE, {"base_logits", "base_logprobs"}),
        (changed("logits", encoding="dense", has_bias=True), {"base_logits", "base_logprobs"}),
        (TOPK, {"topk_logits", "topk_ids", "rest_logsumexp", "base_logprobs"}),
        (
            INT8,
            {"unembedding/weight", "hidden_states_token_scale", "hidden_states_channel_scale"},
        ),
        (FP8, {"unembedding/weight", "hidden_states_token_scale"}),
        (
            POOLED_FP8,
            {
                *["unembedding/weight", "hidden_states_token_scale"],
                *["final_hidden_state", "final_hidden_state_token_scale"],
            },
        ),
        (
            dataclasses.replace(POOLED_INT8, logits=DENSE.logits),
            {
                *["base_logits", "base_logprobs"],
                *["hidden_states_token_scale", "hidden_states_channel_scale"],
            },
        ),
    ],
)
def test_each_encoding_stores_its_arrays_and_no_others(manifest: Manifest, more: set[str]) -> None:
    assert set(layouts(manifest)) == _ALWAYS | more


def test_every_array_of_the_table_is_stored_by_some_cache() -> None:
    stored = {path for manifest in EVERY_KIND for path in layouts(manifest)}
    assert stored == {spec.path for spec in TABLE}


@pytest.mark.parametrize("encoding", ["dense", "topk"])
@pytest.mark.parametrize("layers", [(1, 8, 16), (1, 16, 32)])
def test_only_factored_logits_need_the_final_state(encoding: str, layers: tuple[int, ...]) -> None:
    value = llama_7b().to_json()
    value["states"] |= {"layers": list(layers), "pooled_size": 1024, "stored_width": 1024}
    value["logits"] |= {"encoding": encoding, "top_k": 64 if encoding == "topk" else None}
    assert "final_hidden_state" not in layouts(Manifest.from_json(value, "x"))


@pytest.mark.parametrize(
    ("manifest", "path", "dtype", "row"),
    [
        (FACTORED, "hidden_states", "uint16", (3, 4096)),
        (POOLED, "hidden_states", "uint16", (3, 1024)),
        (POOLED, "final_hidden_state", "uint16", (4096,)),
        (changed("states", pooled_size=8192), "hidden_states", "uint16", (3, 4096)),
        (changed("states", dtype="float16"), "hidden_states", "float16", (3, 4096)),
        (changed("states", dtype="float32"), "hidden_states", "float32", (3, 4096)),
        (FACTORED, "labels", "int32", ()),
        (DENSE, "base_logprobs", "float32", ()),
        (DENSE, "base_logits", "uint16", (32000,)),
        (TOPK, "topk_logits", "float32", (64,)),
        (TOPK, "topk_ids", "int32", (64,)),
        (TOPK, "rest_logsumexp", "float32", ()),
        (INT8, "hidden_states", "int8", (3, 4096)),
        (INT8, "hidden_states_token_scale", "float32", (3,)),
        (POOLED_INT8, "final_hidden_state", "int8", (4096,)),
        (POOLED_INT8, "final_hidden_state_token_scale", "float32", ()),
        (FP8, "hidden_states", "uint8", (3, 4096)),
    ],
)
def test_per_token_arrays_have_one_row_a_token(
    manifest: Manifest, path: str, dtype: str, row: tuple[int, ...]
) -> None:
    layout = layouts(manifest)[path]
    assert (layout.dtype, layout.shape) == (dtype, (2 * 8192, *row))
    assert layout.bytes_per_row == np.dtype(dtype).itemsize * int(np.prod(row, dtype=int))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("hidden_states_channel_scale", (3, 1024)),
        ("final_hidden_state_channel_scale", (4096,)),
    ],
)
def test_scales_of_channels_have_one_row_a_block(path: str, shape: tuple[int, ...]) -> None:
    layout = layouts(POOLED_INT8)[path]
    assert (layout.dtype, layout.shape, layout.shard) == ("float32", (2, *shape), (1, *shape))
    assert (layout.rows_in_block(9), layouts(INT8)["labels"].rows_in_block(9)) == (1, 9)


@pytest.mark.parametrize(
    ("manifest", "path", "type_"),
    [
        (FACTORED, "hidden_states", "bfloat16"),
        (INT8, "hidden_states", "int8"),
        (FP8, "hidden_states", "float8_e4m3fn"),
        (POOLED_FP8, "final_hidden_state", "float8_e4m3fn"),
        (FP8, "unembedding/weight", "bfloat16"),
        (dataclasses.replace(INT8, logits=DENSE.logits), "base_logits", "bfloat16"),
        (INT8, "hidden_states_token_scale", "float32"),
        (INT8, "labels", "int32"),
    ],
)
def test_element_types(manifest: Manifest, path: str, type_: str) -> None:
    assert element_type(layouts(manifest)[path].spec, manifest) == type_


def test_keys_of_the_objects_of_an_array_differ_in_their_first_number_only() -> None:
    arrays = layouts(POOLED_INT8)
    assert shard_key(arrays["labels"], 12) == "labels/c.12"
    assert shard_key(arrays["hidden_states"], 0) == "hidden_states/c.0.0.0"
    assert shard_key(arrays["final_hidden_state_channel_scale"], 3) == (
        "final_hidden_state_channel_scale/c.3.0"
    )


@pytest.mark.parametrize(
    ("path", "dtype", "shape"),
    [
        ("pairs/response_start", "int64", (20, 2)),
        ("pairs/response_length", "int32", (20, 2)),
        ("pairs/block_start", "int64", (3,)),
        ("pairs/pair_id", "uint64", (20,)),
        ("pairs/prompt_id", "uint64", (20,)),
        ("pairs/source", "uint16", (20,)),
        ("pairs/source_row", "int64", (20,)),
        ("unembedding/weight", "uint16", (32000, 4096)),
        ("unembedding/bias", "uint16", (32000,)),
    ],
)
def test_arrays_that_are_written_once(path: str, dtype: str, shape: tuple[int, ...]) -> None:
    layout = layouts(WITH_BIAS)[path]
    assert (layout.dtype, layout.shape) == (dtype, shape)


@pytest.mark.parametrize("manifest", EVERY_KIND)
def test_a_block_is_a_shard_of_every_per_token_array(manifest: Manifest) -> None:
    for layout in layouts(manifest).values():
        assert layout.shard[1:] == layout.chunk[1:] == layout.shape[1:]
        if layout.spec.kind == "block":
            assert layout.shard[0] == layout.rows_in_block(manifest.plan.block_tokens)
            assert layout.shards == manifest.plan.blocks


@pytest.mark.parametrize("manifest", EVERY_KIND)
@pytest.mark.parametrize("block_tokens", [256, 257, 768, 8192, 9216])
def test_shards_are_whole_chunks_of_at_most_a_mebibyte(
    manifest: Manifest, block_tokens: int
) -> None:
    value = manifest.to_json()
    value["plan"]["block_tokens"] = block_tokens
    for layout in layouts(Manifest.from_json(value, "x")).values():
        assert layout.shard[0] % layout.chunk[0] == 0
        if layout.spec.kind == "block":
            rows = layout.chunk[0]
            assert rows == 1 or rows * layout.bytes_per_row <= INNER_CHUNK_BYTES


def test_arrays_outside_of_blocks_have_objects_of_at_most_some_chunks() -> None:
    layout = layouts(changed("base", vocab_size=1 << 20))["unembedding/weight"]
    assert layout.chunk[0] * layout.bytes_per_row == INNER_CHUNK_BYTES
    assert layout.shard[0] == 256 * layout.chunk[0]
    assert layout.shards * layout.shard[0] == layout.shape[0] == 1 << 20


def test_dimension_names_all_have_a_size() -> None:
    sizes = dimension_sizes(TOPK)
    assert {dim for spec in TABLE for dim in spec.dims} == set(sizes)
    assert (sizes["token"], sizes["top_k"], sizes["block_edge"]) == (16384, 64, 3)


def test_paths_of_the_table_are_distinct_and_explained() -> None:
    assert len({spec.path for spec in TABLE}) == len(TABLE)
    assert all(spec.meaning for spec in TABLE)


@pytest.mark.parametrize(
    ("manifest", "size"),
    [
        (FACTORED, 24_576 + 4),
        (DENSE, 24_576 + 8 + 64_000),
        (TOPK, 24_576 + 8 + 64 * 8 + 4),
        (WITHOUT_LAST, 24_576 + 4 + 8192),
        (POOLED, 3 * 1024 * 2 + 4 + 8192),
        (changed("states", dtype="float32"), 2 * 24_576 + 4),
        (INT8, 12_288 + 3 * 4 + 4),
        (FP8, 12_288 + 3 * 4 + 4),
        (POOLED_INT8, 3 * 1024 + 4096 + 4 * 4 + 4),
    ],
)
def test_bytes_of_a_token_of_llama_7b(manifest: Manifest, size: int) -> None:
    assert bytes_per_token(manifest) == size


def test_a_shard_of_llama_7b_is_about_200_mebibytes() -> None:
    layout = layouts(FACTORED)["hidden_states"]
    assert layout.shard[0] * layout.bytes_per_row == 8192 * 24_576
    assert layout.chunk[0] == 32


def test_one_pair_is_enough() -> None:
    value = llama_7b().to_json()
    value["data"]["sources"][0] |= {"rows": 1, "pairs": 1, "dropped": {}}
    value["plan"] |= {"block_tokens": 256, "blocks": 1, "tokens": 7}
    assert layouts(Manifest.from_json(value, "x"))["pairs/pair_id"].shape == (1,)
