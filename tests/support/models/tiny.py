"""Tiny models, a tiny tokenizer and a few pairs, all made on the spot."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers

from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES
from tests.support.models.architectures import CATALOGUE
from tests.support.models.architectures import HIDDEN as HIDDEN
from tests.support.models.architectures import LAYERS as LAYERS
from tests.support.models.architectures import VOCAB as VOCAB

ARCHITECTURES: Final[dict[str, dict[str, Any]]] = {
    name: {"model_type": variant.model_type, **variant.settings}
    for name, variant in CATALOGUE.items()
}


@cache
def tiny_tokenizer(*special: str) -> Any:
    """A byte-level BPE tokenizer of 300 tokens; 0 ends a sequence, nothing begins one.

    Args:
        *special: Special tokens beside those two.
    """
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<eos>", "<bos>", *special],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([json.dumps(row) for row in rows(40)], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<eos>", bos_token="<bos>"
    )


def tiny_base(
    architecture: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> BaseModel:
    """A random model of a variant, its weights large enough that tokens matter."""
    config = transformers.AutoConfig.for_model(**{**ARCHITECTURES[architecture], **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.requires_grad:
            # Biases and norms too, so that forgetting one shows.
            parameter.data += 0.1 * torch.randn_like(parameter)
    # A copy, as some tests give theirs a chat template.
    tokenizer = copy.deepcopy(tiny_tokenizer())
    return BaseModel(model=model.to(dtype), tokenizer=tokenizer)


def save_base(base: BaseModel, folder: Path) -> Path:
    """Write a tiny base as a user would have it: config, safetensors, tokenizer."""
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, str]]:
    """Preference rows with answers of many lengths, the prompts all different."""
    verbs = ("mend", "paint", "lift", "sell", "draw", "cook", "read")
    things = ("a kite", "the old red door", "bread", "two chairs", "my bike")
    found = []
    for number in range(count):
        verb, thing = verbs[number % len(verbs)], things[number % len(things)]
        prompt = f"\n\nHuman: How do I {verb} {thing} in {number} days?\n\nAssistant:"
        chosen = f" First look at {thing}. " + f"Then {verb} it slowly. " * (number % 4)
        rejected = " No idea." + f" Who would {verb} {thing}?" * ((number * 3) % 5)
        found.append({"chosen": prompt + chosen.rstrip(), "rejected": prompt + rejected})
    return found


def write_rows(path: Path, count: int) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)), encoding="utf-8")
    return path


def tiny_extraction(data: Path, output: str | Path, **options: Any) -> ExtractOptions:
    """What extracts a small cache of several blocks; states are stored as they are computed."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "pooled_size": HIDDEN,
        "block_tokens": 256,
        "max_length": 128,
        **options,
    }
    settings.setdefault("storage_dtype", settings["dtype"])
    return ExtractOptions(
        base_model="tiny", data=DataSource(id=str(data)), output=output, **settings
    )


def make_cache(
    folder: Path, base: BaseModel | None = None, *, pairs: int = 40, **options: Any
) -> Path:
    """Extract a small cache of several blocks under a folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_rows(folder / "pairs.jsonl", pairs)
    asked = tiny_extraction(data, folder / "cache", **options)
    dtype = TORCH_DTYPES[options.get("dtype", "float32")]
    extract(asked, base=base or tiny_base(dtype=dtype))
    return folder / "cache"
