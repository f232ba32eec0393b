"""Small random bases and pairs that the device is compared with the CPU on."""

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
import torch
import transformers

from benchmarks.shapes import BaseShape
from mav.pipeline.base.model import BaseModel
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.runtime.choices import HeadKind

VOCABULARY: Final = 258
MAX_LENGTH: Final = 96
POOLED: Final = 48
_END: Final = "<eos>"
_BEGIN: Final = "<bos>"
FEW_PAIRS: Final = 12
INNER: Final[dict[HeadKind, dict[str, Any]]] = {
    "mlp": {"expansion_size": 40},
    "unembedding": {"rank": 24},
    "bottleneck": {"rank": 16},
}
"""Kind of head -> the size of its inner layer, by the name of its option."""
_LLAMA: Final[dict[str, Any]] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a base's attention needs.

    Attributes:
        settings: Of its configuration, beside those all have.
        attentions: Implementations of transformers' that do what it needs; the first is usual.
    """

    settings: dict[str, Any]
    attentions: tuple[str, ...] = ("sdpa",)


KINDS: Final = {
    "plain": Kind(settings={"num_key_value_heads": 4}),
    "groups": Kind(settings={}, attentions=("sdpa", "eager")),
    "windows": Kind(settings={"model_type": "mistral", "sliding_window": 8}),
    "soft-caps": Kind(
        settings={
            "model_type": "gemma2",
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "sliding_window": 8,
        },
        attentions=("eager",),
    ),
    # Wider than 256, or not a multiple of 8, for which there is no kernel.
    "wide heads": Kind(settings={"head_dim": 264}),
    "odd heads": Kind(settings={"head_dim": 20}),
}


@cache
def small_base(kind: str) -> BaseModel:
    """Return a base in float32 on the CPU, its weights such that any narrow type holds them."""
    settings = {**_LLAMA, **KINDS[kind].settings}
    shape = BaseShape(name=None, layers=4, sizes=settings, dtype=torch.float32)
    found = shape.load(torch.device("cpu"))
    for parameter in found.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.bfloat16().float()
    found.model.set_attn_implementation(KINDS[kind].attentions[0])
    return BaseModel(model=found.model, tokenizer=_byte_tokenizer())


def _byte_tokenizer() -> Any:
    """Return a tokenizer of bytes, which can read and write any text; 0 ends one."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([_END, _BEGIN, *alphabet])}
    assert len(vocabulary) == VOCABULARY, "every token has a text"
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token=_END, bos_token=_BEGIN
    )


def on_device(base: BaseModel, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Return a copy of a base elsewhere, in another type."""
    model = copy.deepcopy(base.model).to(device=device, dtype=dtype)
    return BaseModel(model=model, tokenizer=base.tokenizer)


def write_rows(path: Path, count: int, prompt: int, answer: int, vocabulary: int) -> Path:
    """Write preference pairs of random numbers, which are tokens of their own to random bases.

    Args:
        path: File to write, JSON lines.
        count: Number of pairs.
        prompt: Most words of a prompt; the fewest are a quarter.
        answer: Most words of an answer, likewise.
        vocabulary: Tokens there are.
    """
    random = np.random.default_rng(0)

    def words(most: int) -> str:
        length = int(random.integers(max(1, most // 4), most + 1))
        return " ".join(map(str, random.integers(2, vocabulary, length).tolist()))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            begun = f"\n\nHuman: {words(prompt)}\n\nAssistant: "
            row = {"chosen": begun + words(answer), "rejected": begun + words(answer)}
            file.write(json.dumps(row) + "\n")
    return path


def small_rows(folder: Path, pairs: int = FEW_PAIRS) -> Path:
    """Write the pairs that the device is compared with the CPU on."""
    return write_rows(folder / "rows.jsonl", pairs, 8, 6, VOCABULARY)


def small_pairs(folder: Path) -> TokenizedPairs:
    """Return those pairs as tokens."""
    source = DataSource(id=str(small_rows(folder)))
    pairs = read_pairs(source, ReadCounts())
    return tokenize_pairs(pairs, small_base("groups").tokenizer, MAX_LENGTH)
