"""How a base's weights are quantized."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import torch
from gguf import LlamaFileType

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.base.gguf_header import read_gguf_header
from mav.pipeline.base.source import BaseSource
from mav.pipeline.runtime.choices import Quantize

INT8: Final = "bitsandbytes int8"
_PLAIN: Final = ("F32", "F16", "BF16", "F64")


def quantization_of(source: BaseSource, quantize: Quantize | None) -> str | None:
    """Return how the weights of a base are quantized, for the manifest, or None.

    Args:
        source: Its files, which may be quantized themselves.
        quantize: How they are quantized when they are loaded.

    Raises:
        UsageError: They are already quantized, and `quantize` is given.
        BaseModelError: The files cannot be read.
    """
    stored = (
        _of_gguf(source.folder / source.gguf_file)
        if source.gguf_file is not None
        else _of_config(source.folder / "config.json")
    )
    if quantize is None:
        return stored
    if stored is not None:
        raise UsageError(
            f"quantize: got {quantize!r}, but {source.id} is already quantized ({stored}); leave "
            f"it out, or name a base in full precision"
        )
    return f"bitsandbytes {quantize}"


def quantize_as(quantization: str | None, source: BaseSource) -> Quantize | None:
    """Return the quantization to load a base with to match a manifest.

    Args:
        quantization: What the manifest says.
        source: The base's files.
    """
    if quantization is None or quantization_of(source, None) == quantization:
        return None
    return next((way for way in get_args(Quantize) if quantization == f"bitsandbytes {way}"), None)


def loading_options(quantize: Quantize | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments that make transformers quantize a base while loading it.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    if quantize is None:
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "`quantize` needs bitsandbytes: pip install 'mav-align[quantized]'"
        ) from error
    from transformers import BitsAndBytesConfig

    # It warns about every product that it casts.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        if quantize == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": config}


def quantization_in(config: Any) -> str | None:
    """Return how the weights of a loaded model are quantized.

    Args:
        config: Its configuration.
    """
    settings = getattr(config, "quantization_config", None)
    return named(
        settings if settings is None or isinstance(settings, Mapping) else settings.to_dict()
    )


def named(config: Mapping[str, Any] | None) -> str | None:
    """Return the name of a configuration's quantization."""
    if not config:
        return None
    method = config.get("quant_method", "unknown")
    # A configuration file has the name, a loaded model a member of an enumeration.
    method = str(getattr(method, "value", method))
    if method == "bitsandbytes":
        return (
            f"{method} {config.get('bnb_4bit_quant_type')}" if config.get("load_in_4bit") else INT8
        )
    bits = config.get("bits")
    return f"{method} {bits} bit" if bits else method


def _of_config(path: Path) -> str | None:
    try:
        return named(json.loads(path.read_bytes()).get("quantization_config"))
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelError(f"{path}: cannot be read: {error}") from error


def _of_gguf(path: Path) -> str | None:
    """Return a GGUF file's own name for its quantization, such as Q4_K_M."""
    file_type = read_gguf_header(path).file_type
    if file_type is None:
        return "GGUF"
    try:
        name = LlamaFileType(file_type).name
    except ValueError:
        name = f"type {file_type}"
    name = name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return None if name in _PLAIN else f"GGUF {name}"
