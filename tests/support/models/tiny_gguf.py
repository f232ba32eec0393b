"""A tiny Llama as one GGUF file, for what is done with such files."""

import json
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from tests.support.models.tiny import HIDDEN, LAYERS, VOCAB, tiny_tokenizer

_HEADS: Final = 4
_INNER: Final = 2 * HIDDEN


def write_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Write random float32 weights with the tiny tokenizer; return the path."""
    random = np.random.default_rng(seed)

    def weight(rows: int, columns: int) -> Any:
        return random.normal(0.0, 0.2, (rows, columns)).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer)
    writer.add_tensor("token_embd.weight", weight(VOCAB, HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output.weight", weight(VOCAB, HIDDEN))
    for layer in range(LAYERS):
        for name, rows, columns in (
            *((f"attn_{part}", HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")),
            ("ffn_gate", _INNER, HIDDEN),
            ("ffn_up", _INNER, HIDDEN),
            ("ffn_down", HIDDEN, _INNER),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight(rows, columns))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    stored = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocabulary = sorted(stored["model"]["vocab"].items(), key=lambda entry: entry[1])
    merges = stored["model"]["merges"]
    special = {entry["content"] for entry in stored["added_tokens"]}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [kinds.CONTROL if token in special else kinds.NORMAL for token, _ in vocabulary]
    )
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
