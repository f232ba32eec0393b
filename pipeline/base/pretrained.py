"""Loads configuration, tokenizer and weights of a base, and checks that they are complete."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import transformers
from transformers import modeling_utils

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.gguf_reading import gguf_read_once, require_none_skipped
from mav.pipeline.base.loaded_weights import require_complete, require_finite
from mav.pipeline.base.source import BaseSource
from mav.pipeline.base.tokenizer import require_tokenizer, require_vocabulary_files
from mav.pipeline.base.weight_files import require_whole
from mav.pipeline.runtime.hub_errors import one_line
from mav.pipeline.runtime.library_logging import QuietLibraries

_log = logging.getLogger(__name__)


def load_config(source: BaseSource) -> Any:
    """Load the configuration of a base's text decoder.

    Raises:
        BaseModelError: It cannot be read.
    """
    try:
        with QuietLibraries():
            return read_config(source).get_text_config()
    except Exception as error:
        raise BaseModelError(
            f"{source.id}: its configuration cannot be read: {one_line(error)}"
        ) from error


def read_config(source: BaseSource) -> Any:
    """Load the whole configuration of a base, raising what transformers raises."""
    return transformers.AutoConfig.from_pretrained(**source.loaded_from, trust_remote_code=False)


def load_tokenizer(source: BaseSource) -> Any:
    """Load the tokenizer of a base model.

    Raises:
        BaseModelError: There is none, or it cannot be read or used.
    """
    places = source.loaded_from
    if source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file():
        # Trainers save one beside an adapter, with the chat template it was trained in.
        places = {"pretrained_model_name_or_path": source.adapter}
    elif "gguf_file" not in places:
        require_vocabulary_files(source.converted or source.folder)
    try:
        with QuietLibraries():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                **places, trust_remote_code=False
            )
    except Exception as error:
        raise BaseModelError(
            f"{source.id}: its tokenizer cannot be loaded: {one_line(error)}"
        ) from error
    require_tokenizer(tokenizer, source.id)
    return tokenizer


def load_model(
    source: BaseSource, *, auto_class: Any = transformers.AutoModelForCausalLM, **options: Any
) -> Any:
    """Load the weights of a model into the class its configuration names.

    Args:
        source: Its files.
        auto_class: What chooses the class: by default, a base's.
        **options: Of `from_pretrained`.

    Raises:
        BaseModelError: A file is damaged, a tensor is missing, of another shape or not used.
    """
    _log.debug(f"{source.id}: reading weights from {source.converted or source.folder}")
    from_gguf = "gguf_file" in source.loaded_from
    if source.gguf_file is None:
        require_whole(source.weight_files())
    with QuietLibraries(), gguf_read_once() as skipped, _conversions() as unconverted:
        model, report = auto_class.from_pretrained(
            **source.loaded_from,
            trust_remote_code=False,
            output_loading_info=True,
            # Otherwise transformers raises an error without names; mismatches are named below.
            ignore_mismatched_sizes=True,
            **(_dense_gguf() if from_gguf else {"use_safetensors": True}),
            **options,
        )
    require_none_skipped(skipped, source.id)
    line = require_complete(model, {**report, "unconverted": unconverted}, source.id)
    require_finite(model, source.id)
    if line is not None:
        _log.info(line)
    return model


@contextmanager
def _conversions() -> Iterator[set[str]]:
    """Yield the names of tensors that could not be converted from the checkpoint's.

    transformers raises an error that names none, after reporting them in its log only.
    """
    unconverted: set[str] = set()

    def keep(*_: Any, loading_info: Any, **__: Any) -> None:
        unconverted.update(getattr(loading_info, "conversion_errors", {}))

    if not hasattr(modeling_utils, "log_state_dict_report"):
        yield unconverted
        return
    with patch.object(modeling_utils, "log_state_dict_report", keep):
        yield unconverted


def _dense_gguf() -> dict[str, Any]:
    """Return the option that makes newer releases dequantize a GGUF file.

    They keep them packed if kernels for that are installed; dense weights give the same numbers on
    every machine, and factored logits need a dense unembedding.
    """
    packed = getattr(transformers, "GgufConfig", None)
    return {} if packed is None else {"quantization_config": packed(dequantize=True)}
