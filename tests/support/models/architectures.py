"""The architectures the tests cover.

A variant is a tiny configuration with its peculiarities, and a peculiarity is words for the table
in `docs/models.md` together with what shows it in the model: the table cannot name what no test
has seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mav.pipeline.extraction.packing import PACKINGS, Packing
from tests.support.models.peculiarities import (
    ALIBI,
    BIASED,
    EXPERTS,
    LEARNED,
    LINEAR_ATTENTION,
    MIXED,
    NO_LIMIT,
    OWN_ATTENTION,
    QUERY_NORMS,
    ROOMY,
    SCALED_EMBEDDINGS,
    SOFTCAP,
    TIED,
    UNTIED,
    WINDOW,
    Peculiarity,
    has_vision_tower,
    layer_kinds,
    matters,
    norms_follow,
    weighs,
    window,
)

VOCAB: Final = 300
HIDDEN: Final = 32
LAYERS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A tiny configuration.

    Attributes:
        name: Names the tests of it.
        model_type: The architecture, as transformers calls it.
        examples: Models of this kind, for the table.
        settings: Of the configuration.
        peculiarities: What the tests find in it.
    """

    name: str
    model_type: str
    examples: tuple[str, ...]
    settings: Mapping[str, Any]
    peculiarities: tuple[Peculiarity, ...]

    @property
    def packing(self) -> Packing:
        """The quickest way its pairs may be run in."""
        return max((it.packing for it in self.peculiarities), key=PACKINGS.index)


_COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GPT: Final[dict[str, Any]] = {
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_FALCON: Final = {name: value for name, value in _COMMON.items() if name != "head_dim"}
# As many experts as layers, so that the list of the one can be mistaken for that of the other.
_FOUR_EXPERTS: Final = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR_HEADS: Final = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_LOCAL_AND_GLOBAL: Final = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_VISION: Final = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _variant(
    name: str,
    examples: str,
    settings: Mapping[str, Any],
    *peculiarities: Peculiarity,
    common: Mapping[str, Any] = _COMMON,
) -> Variant:
    """A variant whose name is its model type, or that and, behind a dash, a word."""
    return Variant(
        name=name,
        model_type=name.partition("-")[0],
        examples=tuple(examples.split(", ")) if examples else (),
        settings={**common, **settings},
        peculiarities=peculiarities,
    )


_ALL: Final = (
    _variant("llama", "LLaMA 1 to 3, Vicuna", {}, UNTIED),
    _variant("llama-tied", "SmolLM2", {"tie_word_embeddings": True}, TIED),
    _variant("mistral", "Mistral 7B", {"sliding_window": NO_LIMIT}, UNTIED, ROOMY),
    _variant("mistral-window", "", {"sliding_window": WINDOW}, window()),
    _variant("mixtral", "Mixtral 8x7B", {"num_local_experts": 4}, EXPERTS),
    _variant("gemma", "Gemma", {}, TIED, SCALED_EMBEDDINGS),
    _variant(
        "gemma2",
        "Gemma 2",
        {
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 1.0,
            "sliding_window": NO_LIMIT,
        },
        TIED,
        SCALED_EMBEDDINGS,
        SOFTCAP,
        Peculiarity(words="soft-capped attention", shown=matters(attn_logit_softcapping=None)),
        MIXED,
        ROOMY,
    ),
    _variant("gemma2-window", "", {"sliding_window": WINDOW}, window()),
    _variant(
        "gemma3_text",
        "Gemma 3 1B",
        {"final_logit_softcapping": 2.0, "sliding_window": NO_LIMIT, **_LOCAL_AND_GLOBAL},
        SOFTCAP,
        QUERY_NORMS,
        MIXED,
        ROOMY,
    ),
    _variant("gemma3_text-window", "", {"sliding_window": WINDOW, **_LOCAL_AND_GLOBAL}, window()),
    _variant(
        "gemma3",
        "Gemma 3 4B to 27B",
        {
            "text_config": {**_COMMON, "sliding_window": NO_LIMIT, **_LOCAL_AND_GLOBAL},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": VOCAB - 1,
            "boi_token_index": VOCAB - 2,
            "eoi_token_index": VOCAB - 3,
        },
        Peculiarity(words="vision tower beside the decoder", shown=has_vision_tower),
        common={},
    ),
    _variant(
        "gemma4_text",
        "Gemma 4 without its towers",
        {
            "final_logit_softcapping": 3.0,
            "sliding_window": WINDOW,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
            **_LOCAL_AND_GLOBAL,
        },
        SOFTCAP,
        Peculiarity(words="embeddings for each layer", shown=weighs("embed_tokens_per_layer")),
        MIXED,
        window(),
    ),
    _variant("phi", "Phi-1, Phi-2", {}, BIASED),
    _variant(
        "phi3",
        "Phi-3, Phi-4",
        {},
        Peculiarity(words="queries, keys and values as one", shown=weighs("qkv_proj")),
    ),
    _variant("phi3-window", "", {"sliding_window": WINDOW}, window()),
    _variant(
        "qwen2",
        "Qwen2, Qwen2.5",
        {},
        Peculiarity(words="biased queries", shown=weighs("q_proj.bias")),
    ),
    _variant(
        "qwen2-window",
        "",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        window(),
        MIXED,
    ),
    _variant("qwen3", "Qwen3", {}, QUERY_NORMS),
    _variant(
        "qwen3_moe", "Qwen3-30B-A3B", {"num_experts": 4, **_FOUR_EXPERTS}, EXPERTS, QUERY_NORMS
    ),
    _variant(
        "qwen3_next",
        "Qwen3-Next",
        {
            "num_experts": 4,
            **_FOUR_EXPERTS,
            "shared_expert_intermediate_size": 16,
            **_LINEAR_HEADS,
        },
        LINEAR_ATTENTION,
        EXPERTS,
    ),
    _variant(
        "qwen3_5_text",
        "Qwen3.5",
        _LINEAR_HEADS,
        LINEAR_ATTENTION,
    ),
    _variant(
        "cohere",
        "Command R",
        {"logit_scale": 0.25},
        TIED,
        Peculiarity(words="scaled logits", shown=matters(logit_scale=1.0)),
    ),
    _variant(
        "cohere2",
        "Command R7B",
        {"logit_scale": 0.25, "sliding_window": WINDOW},
        Peculiarity(words="scaled logits", shown=matters(logit_scale=1.0)),
        MIXED,
        window(),
    ),
    _variant(
        "granite",
        "Granite 3",
        {"logits_scaling": 3.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
        Peculiarity(words="divided logits", shown=matters(logits_scaling=1.0)),
        SCALED_EMBEDDINGS,
        Peculiarity(words="scaled residuals", shown=matters(residual_multiplier=1.0)),
    ),
    _variant("gpt2", "GPT-2", {}, TIED, LEARNED, common=_GPT),
    _variant(
        "gpt_neo",
        "GPT-Neo",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "attention_types": [[["global", "local"], 2]],
            "num_heads": 4,
            "max_position_embeddings": 256,
            "window_size": WINDOW,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        LEARNED,
        Peculiarity(words="local and global layers", shown=layer_kinds("local", "global")),
        OWN_ATTENTION,
        window("window_size", "separate"),
        common={},
    ),
    _variant("gptj", "GPT-J", {"rotary_dim": 4}, BIASED, OWN_ATTENTION, common=_GPT),
    _variant(
        "gpt_neox",
        "Pythia, GPT-NeoX",
        {},
        UNTIED,
        Peculiarity(words="parallel residual", shown=matters(use_parallel_residual=False)),
    ),
    _variant(
        "bloom",
        "BLOOM",
        {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
        ALIBI,
        common={},
    ),
    _variant(
        "falcon",
        "Falcon 40B",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        Peculiarity(words="two norms side by side", shown=weighs("ln_mlp")),
        OWN_ATTENTION,
        common=_FALCON,
    ),
    _variant("falcon-alibi", "Falcon-RW", {"alibi": True}, ALIBI, common=_FALCON),
    _variant("olmo2", "OLMo 2", {}, Peculiarity(words="norms after each part", shown=norms_follow)),
    _variant(
        "smollm3",
        "SmolLM3",
        {"no_rope_layers": [1, 1, 1, 0]},
        Peculiarity(words="layers without positions", shown=matters(no_rope_layers=[1] * LAYERS)),
    ),
    _variant(
        "starcoder2",
        "StarCoder2",
        {"sliding_window": WINDOW},
        TIED,
        Peculiarity(words="biases throughout", shown=weighs("mlp.c_fc.bias")),
        window(),
    ),
    _variant(
        "deepseek_v3",
        "DeepSeek-V3, DeepSeek-R1",
        {
            "n_routed_experts": 4,
            **_FOUR_EXPERTS,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        Peculiarity(words="latent attention", shown=weighs("kv_a_proj")),
        EXPERTS,
    ),
    _variant(
        "gpt_oss",
        "gpt-oss 20B and 120B",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        EXPERTS,
        Peculiarity(words="attention sinks", shown=weighs("sinks", -1e4)),
        MIXED,
        window(),
    ),
)
CATALOGUE: Final[dict[str, Variant]] = {variant.name: variant for variant in _ALL}
assert len(CATALOGUE) == len(_ALL), "two variants have the same name"
