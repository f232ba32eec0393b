"""Attaches a head to a base: compatibility, layers, and switching bases."""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mav.cache_schema.manifest import BaseModelRecord
from mav.pipeline.base.generation_defaults import readable_config
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.loading import LoadOptions, load_source, preview_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import BaseSource
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.base_settings import not_carried_out, settings_of
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.decoding.trained_head import TrainedHead
from mav.pipeline.head.compatibility import check_vocabulary, map_layers
from mav.pipeline.head.model import is_quantized
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.preferences.prompt_format import (
    PromptFormat,
    choose_prompt_format,
)
from mav.pipeline.runtime.choices import PromptFormatName

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttachOptions:
    """Options for attaching a head to a base.

    Attributes:
        allow_tokenizer_mismatch: Take a base whose tokenizer is another one of the same size.
        prompt_form: Form of prompts; `auto` is what the head was trained in.
        template_date: Date given to a chat template that asks for it, as YYYY-MM-DD, or
            `today`; the day of the head's training data if None.
        int8_head: Keep the head's weights in a byte each; needs torchao.
        base_generation_config: Take what the user leaves open from the base's generation_config.
        gguf_cache: Keep GGUF weights as safetensors in the cache folder, and use them.
    """

    allow_tokenizer_mismatch: bool = False
    prompt_form: PromptFormatName = "auto"
    template_date: str | None = None
    int8_head: bool = False
    base_generation_config: bool = False
    gguf_cache: bool = True

    def __post_init__(self) -> None:
        if self.template_date is not None:
            parse_date(self.template_date)


@dataclass(frozen=True, kw_only=True)
class AttachedModel:
    """A base with a compatible head attached.

    Attributes:
        base: The base.
        aligned: Base and head together; alpha is 0 until it is set.
        form: Form of prompts.
        settings: Fields of `GenerationOptions` that take the place of its defaults.
    """

    base: BaseModel
    aligned: AlignedLM
    form: PromptFormat
    settings: Mapping[str, Any] = field(default_factory=dict)

    def response_text(self, decoding: GenerationOptions) -> ResponseText:
        """Return what makes text of a response's tokens."""
        stops = (*self.form.stops, *decoding.stop)
        return ResponseText(self.base.tokenizer, stops, strip=True)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a response in this form of prompts."""
        return self.base.end_tokens | {self.form.end_token}

    def close(self) -> None:
        """Remove the hooks from the base."""
        self.aligned.__exit__()


def load_compatible_base(
    source: BaseSource, trained: TrainedHead, rules: AttachOptions, placement: LoadOptions
) -> BaseModel:
    """Load a base after checking its configuration and tokenizer against a head.

    Args:
        source: Its files.
        trained: The head.
        rules: What the user allows and wants.
        placement: In what type and where.

    Raises:
        MAVError: It cannot be loaded or does not belong to the head.
    """
    source = with_copy(source, gguf_cache=rules.gguf_cache)
    check_compatible(preview_base(source), trained, rules, log_differences=False)
    return load_source(source, placement)


def check_compatible(
    base: BaseModel, trained: TrainedHead, rules: AttachOptions, *, log_differences: bool = True
) -> tuple[int, ...]:
    """Check that a base is compatible with a head, its weights loaded or not.

    Args:
        base: The base.
        trained: The head.
        rules: What the user allows.
        log_differences: Whether to log how the base differs from the one the head was trained on.

    Returns:
        The layers of this base that the head reads.

    Raises:
        MismatchError: It does not.
        UsageError: Prompts cannot take the form the user wants.
    """
    record = dataclasses.replace(base.fingerprint(), id=base.id)  # as the user knows it
    check_vocabulary(
        trained.base,
        record,
        trained.name,
        "the base",
        other_tokenizer=rules.allow_tokenizer_mismatch,
    )
    _form(base, trained, rules)
    layers = map_layers(trained.states, trained.base, record)
    if log_differences:
        _log_differences(record, trained, layers)
    return layers


def _log_differences(
    record: BaseModelRecord, trained: TrainedHead, layers: tuple[int, ...]
) -> None:
    """Log how a base differs from the one the head was trained on."""
    if record.tokenizer_digest != trained.base.tokenizer_digest:
        _log.warning(
            f"{record.id} has another tokenizer than the base the head was trained on "
            f"({trained.base.id}): what the head raises may be other tokens than it learned of"
        )
    same_weights = record.weights_digest == trained.base.weights_digest
    if record.quantization != trained.base.quantization:
        _log.warning(
            f"{record.id} is {_precision(record.quantization)}, and the base the head was trained "
            f"on was {_precision(trained.base.quantization)}: its states differ a little"
        )
    if not same_weights:
        _log.info(
            f"{record.id} is another base than the head was trained on ({trained.base.id}); "
            f"reading its layers {list(layers)}"
        )


def _precision(quantization: str | None) -> str:
    return "in full precision" if quantization is None else f"quantized ({quantization})"


def attach_head(
    base: BaseModel, trained: TrainedHead, rules: AttachOptions, *, log_differences: bool = True
) -> AttachedModel:
    """Attach a head to a loaded base, on the base's device and in its type.

    Raises:
        MAVError: They do not belong together.
    """
    layers = check_compatible(base, trained, rules, log_differences=log_differences)
    settings = _base_settings(base, rules)
    head = trained.head.to(base.logits_device)
    # One in int8 computes in the type it was quantized from, which is that of all bases under it.
    if head.dtype != base.dtype and not is_quantized(head):
        # The one that was loaded keeps its digits for the bases to come.
        head = copy.deepcopy(head).to(base.dtype)
    return AttachedModel(
        base=base,
        aligned=AlignedLM(base, head, layers).__enter__(),
        form=_form(base, trained, rules),
        settings=settings,
    )


def _form(base: BaseModel, trained: TrainedHead, rules: AttachOptions) -> PromptFormat:
    date = rules.template_date or trained.template_date
    return choose_prompt_format(
        rules.prompt_form,
        trained.template,
        base.tokenizer,
        None if date is None else parse_date(date),
    )


def _base_settings(base: BaseModel, rules: AttachOptions) -> dict[str, Any]:
    """Return the settings of a base's generation_config that apply; warn of those that cannot."""
    problem = None if base.source is None else readable_config(base.source.folder)[1]
    if problem is not None:
        _log.warning(problem)
    if not rules.base_generation_config:
        return {}
    settings = settings_of(base.id, base.generation_config)
    if others := not_carried_out(base.generation_config):
        _log.warning(
            f"{base.id}: of its generation_config, {', '.join(others)} cannot be carried out here"
        )
    return settings
