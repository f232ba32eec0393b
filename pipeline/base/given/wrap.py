"""Makes a base of a model that the user has loaded: a transformers model, or PEFT's around one."""

from pathlib import Path
from typing import Any

import transformers
from torch import nn

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.pretrained import load_tokenizer
from mav.pipeline.base.source import resolve_base
from mav.pipeline.base.tokenizer import require_tokenizer, require_tokens_within
from mav.pipeline.runtime.compute_dtype import AUTO, plain_name
from mav.pipeline.runtime.load_options import BaseOptions

GivenBase = str | Path | BaseModel | nn.Module
"""What may be given as a base: where it is, or the loaded model."""


def loaded_base(given: Any, tokenizer: Any = None, option: str = "base_model") -> BaseModel | None:
    """Return the base of a model that is loaded, or None of what names files.

    The model stays the user's: mode and configuration are changed only while it is in use, and
    neither weights nor what requires gradients at all.

    Args:
        given: Hub id, folder or file; a `BaseModel`; a transformers model; PEFT's around one.
        tokenizer: The model's tokenizer; where None, that of the files the model names.
        option: The argument it was given as, for errors.

    Raises:
        UsageError: It is nothing of these, or there is no tokenizer for it.
        BaseModelError: The model cannot be a base.
    """
    if isinstance(given, str | Path | BaseModel):
        if tokenizer is not None:
            what = "loaded base" if isinstance(given, BaseModel) else "base in files"
            raise UsageError(
                f"tokenizer: got {type(tokenizer).__name__} with a {what}, which brings its own; "
                f"leave it out, or give the loaded model"
            )
        return given if isinstance(given, BaseModel) else None
    model = _transformers_model(given, option)
    name = f"The given {type(model).__name__}"
    tokenizer = _tokenizer_of(model, option) if tokenizer is None else _of_processor(tokenizer)
    require_tokenizer(tokenizer, name)
    require_tokens_within(model, tokenizer, name, of_gguf=False)
    return BaseModel(model=model, tokenizer=tokenizer, borrowed=True)


def require_as_loaded(options: BaseOptions, base: BaseModel) -> None:
    """Refuse loading options that contradict a base that is loaded already.

    Raises:
        UsageError: Naming the first.
    """
    for name in ("quantize", "device_map", "gguf_file", "revision", "merge_adapter"):
        if getattr(options, name):
            raise UsageError(
                f"{name}: the given base is already loaded, so load it that way, or leave "
                f"it to `base_model`"
            )
    if options.dtype not in (AUTO, base.dtype, plain_name(base.dtype)):
        raise UsageError(
            f"dtype: asked for {options.dtype}, but the given base computes in "
            f"{plain_name(base.dtype)}; load it in the type to compute in, and leave dtype out"
        )


def _transformers_model(given: Any, option: str) -> Any:
    model = given
    inside: Any = getattr(given, "get_base_model", None)
    if isinstance(given, nn.Module) and inside is not None:
        # PEFT's; of the tuners that put their weights into the model's own layers, the model inside
        # is the whole of it.
        kinds = getattr(given, "peft_config", {}).values()
        before = [str(each.peft_type) for each in kinds if each.is_prompt_learning]
        if before:
            raise UsageError(
                f"{option}: got a model with {before[0].rpartition('.')[2]}, whose virtual tokens "
                f"stand before every text; expected an adapter in the layers, such as LoRA"
            )
        model = inside()
    if not isinstance(model, transformers.PreTrainedModel):
        raise UsageError(
            f"{option}: got {type(given).__name__}, expected a hub id, a folder, or a loaded "
            f"transformers model{' (the one inside it)' if isinstance(given, nn.Module) else ''}"
        )
    if model.get_output_embeddings() is None:
        raise UsageError(
            f"{option}: got {type(model).__name__}, which gives no logits; load it with "
            f"AutoModelForCausalLM"
        )
    return model


def _tokenizer_of(model: Any, option: str) -> Any:
    """Load the tokenizer of the files that a model says it was loaded from."""
    named = getattr(model, "name_or_path", "")
    if not named:
        raise UsageError(
            f"tokenizer: got none with a {type(model).__name__} that names no files to find one "
            f"in; give its tokenizer beside `{option}`"
        )
    return load_tokenizer(resolve_base(named))


def _of_processor(given: Any) -> Any:
    """Return a tokenizer, also that of a processor."""
    tokenizer = getattr(given, "tokenizer", given)
    if not hasattr(tokenizer, "get_vocab"):
        raise UsageError(f"tokenizer: got {type(given).__name__}, expected one of transformers")
    return tokenizer
