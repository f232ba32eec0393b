"""Loads a base model with its tokenizer, or without its weights to check it first."""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from mav.cache_schema.errors import BaseModelError, MAVError
from mav.pipeline.base.generation_defaults import readable_config
from mav.pipeline.base.gguf_copy import resolve_with_copy
from mav.pipeline.base.given.adapter import require_peft, with_adapter
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.pretrained import load_model, load_tokenizer, read_config
from mav.pipeline.base.quantization import (
    loading_options,
    quantization_of,
)
from mav.pipeline.base.source import (
    BaseSource,
)
from mav.pipeline.base.tokenizer import require_tokens_within
from mav.pipeline.runtime.argument_names import tells_of_wrong_arguments
from mav.pipeline.runtime.choices import Quantize
from mav.pipeline.runtime.compute_dtype import AUTO, Dtype, resolve_dtype
from mav.pipeline.runtime.devices import pick_device
from mav.pipeline.runtime.library_logging import QuietLibraries
from mav.pipeline.runtime.load_options import DeviceMap, LoadOptions

_log = logging.getLogger(__name__)


@tells_of_wrong_arguments
def load_base(
    base_model: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    dtype: Dtype = AUTO,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    quantize: Quantize | None = None,
    gguf_cache: bool = True,
    merge_adapter: bool = False,
) -> BaseModel:
    """Load a base model and its tokenizer, running no code from the checkpoint.

    Args:
        base_model: Hub id, folder or `.gguf` file; or those of an adapter, loaded with PEFT into
            the base it names.
        gguf_file: File inside the folder or repository, for weights in GGUF.
        revision: Branch, tag or commit of a hub repository.
        dtype: See `LoadOptions`.
        device: Likewise.
        device_map: Likewise.
        quantize: Likewise.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.
        merge_adapter: See `LoadOptions`.

    Raises:
        BaseModelError: It cannot be found or loaded.
        UsageError: The device is not available, or PEFT is not installed.
    """
    placement = LoadOptions(
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantize=quantize,
        gguf_cache=gguf_cache,
        merge_adapter=merge_adapter,
    )
    source = resolve_with_copy(str(base_model), gguf_file, revision, gguf_cache=gguf_cache)
    return load_source(source, placement)


def load_source(
    source: BaseSource, placement: LoadOptions, tokenizer: Any | None = None
) -> BaseModel:
    """Load a base model from files that were found; see `load_base`.

    Args:
        source: Its files.
        placement: Type and device.
        tokenizer: Its tokenizer, if already loaded.
    """
    source.weight_files()
    if source.adapter is not None:
        require_peft(source.id)  # before the base is loaded
    elif placement.merge_adapter:
        _log.warning(f"`merge_adapter` changes nothing: {source.id} is no adapter")
    spread = placement.device_map
    placed = pick_device(placement.device) if spread is None else None
    quantization_of(source, placement.quantize)
    dtype = resolve_dtype(placement.dtype, placed or "auto", spread=spread is not None)
    quantizing = loading_options(placement.quantize, dtype)
    generation, _ = readable_config(source.converted or source.folder)
    if quantizing and spread is None:
        # Quantized weights cannot be moved.
        spread, placed = {"": str(placed)}, None
    try:
        model = load_model(
            source,
            dtype=dtype,
            **quantizing,
            **({} if generation is None else {"generation_config": generation}),
            **({} if spread is None else {"device_map": spread}),
        )
        tokenizer = tokenizer or load_tokenizer(source)
        if source.adapter is not None:
            model = with_adapter(model, source.adapter, merge=placement.merge_adapter)
    except MAVError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"{source.id}: cannot be loaded as a causal language model: {error}"
        ) from error
    require_tokens_within(model, tokenizer, source.id, of_gguf=source.gguf_file is not None)
    return BaseModel(
        model=model if placed is None else model.to(placed),
        tokenizer=tokenizer,
        source=source,
        quantize=placement.quantize,
    )


def preview_base(source: BaseSource, quantize: Quantize | None = None) -> BaseModel:
    """Return a base without its weights, to check it before they are loaded.

    Args:
        source: Its files.
        quantize: How its weights will be quantized.

    Raises:
        BaseModelError: Its configuration or tokenizer cannot be read.
    """
    source.weight_files()
    try:
        with QuietLibraries(), torch.device("meta"):
            config = read_config(source)
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise BaseModelError(f"{source.id}: is not a causal language model: {error}") from error
    tokenizer = load_tokenizer(source)
    require_tokens_within(model, tokenizer, source.id, of_gguf=source.gguf_file is not None)
    return BaseModel(model=model, tokenizer=tokenizer, source=source, quantize=quantize)
