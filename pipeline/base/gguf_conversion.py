"""Converts a GGUF file to config.json, tokenizer and safetensors."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.gguf_reading import gguf_read_once
from mav.pipeline.base.pretrained import load_model, load_tokenizer, read_config
from mav.pipeline.base.source import BaseSource
from mav.pipeline.runtime.library_logging import QuietLibraries


def convert(source: BaseSource, folder: Path) -> None:
    """Write a GGUF base's configuration, tokenizer and dequantized weights under a folder.

    Args:
        source: The base, not yet converted.
        folder: An empty folder.

    Raises:
        BaseModelError: It cannot be loaded, or would change when saved.
        OSError: It cannot be written.
    """
    with gguf_read_once():
        tokenizer = load_tokenizer(source)
        try:
            model = load_model(source, dtype=torch.float32)
        except (BaseModelError, OSError):
            raise
        except Exception as error:
            raise BaseModelError(
                f"{source.id}: cannot be loaded as a causal language model: {error}"
            ) from error
    with QuietLibraries():
        model.save_pretrained(folder, state_dict=_smallest(model.state_dict()))
        tokenizer.save_pretrained(folder)
    copied = dataclasses.replace(source, converted=folder)
    for what, direct, reloaded in (
        ("configuration", _described(model.config), _described(read_config(copied))),
        ("tokenizer", _behaviour(tokenizer), _behaviour(load_tokenizer(copied))),
    ):
        if direct != reloaded:
            raise BaseModelError(
                f"{source.id}: its {what} would change when it is saved as safetensors. Use "
                f"`gguf_cache=False`."
            )


def _smallest(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in 16 bits where that is exact; tensors that share memory still share it."""
    made: dict[int, Tensor] = {}
    for weight in weights.values():
        if weight.data_ptr() not in made:
            made[weight.data_ptr()] = _narrowed(weight)
    return {name: made[weight.data_ptr()] for name, weight in weights.items()}


def _narrowed(weight: Tensor) -> Tensor:
    if weight.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            narrow = weight.to(dtype)
            if torch.equal(narrow.float(), weight):
                return narrow
    return weight


def _described(config: Any) -> dict[str, Any]:
    settings: dict[str, Any] = config.to_dict()
    return {
        name: value for name, value in settings.items() if name not in ("dtype", "_name_or_path")
    }


def _behaviour(tokenizer: Any) -> tuple[Any, ...]:
    return (
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        tokenizer.model_max_length,
    )
