"""Tiny GGUF files, written as llama.cpp's converter names things."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from mav.pipeline.base.model import BaseModel
from tests.support.models.tiny import tiny_base

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

Tensors = dict[str, NDArray[np.float32]]


def write_gguf(
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    change: Callable[[Tensors], None] = lambda _: None,
) -> Path:
    """Write a tiny random Llama; its norms in float32, all else in `kind`.

    Args:
        path: The file.
        kind: What matrices are stored in.
        change: Changes the tensors before they are written.
    """
    base = tiny_base(**SIZES)
    config = base.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, base)
    tensors = _tensors(base)
    change(tensors)
    for name, values in tensors.items():
        stored = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, base: BaseModel) -> None:
    vocabulary = base.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(base.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    control = (base.tokenizer.eos_token, base.tokenizer.bos_token)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(base.tokenizer.eos_token_id)
    writer.add_bos_token_id(base.tokenizer.bos_token_id)


def _tensors(base: BaseModel) -> Tensors:
    config = base.config
    found: Tensors = {}
    for name, weight in base.model.state_dict().items():
        values = weight.float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part, _, kind = rest.rpartition(".")
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = len(values) // config.head_dim
                halves = values.reshape(heads, 2, config.head_dim // 2, -1)
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
            found[f"blk.{layer}.{_NAMES[part]}.{kind}"] = values
        else:
            top = {
                "model.embed_tokens": "token_embd",
                "model.norm": "output_norm",
                "lm_head": "output",
            }
            part, _, kind = name.rpartition(".")
            found[f"{top[part]}.{kind}"] = values
    return found
