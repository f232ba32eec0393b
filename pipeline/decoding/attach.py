"""Attaches heads to a base: compatibility, layers, and switching bases."""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.generation_defaults import readable_config
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.loading import load_source, preview_base
from mav.pipeline.base.model import IN_MEMORY, BaseModel
from mav.pipeline.base.source import BaseSource
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.base_settings import not_carried_out, settings_of
from mav.pipeline.decoding.options import AttachOptions, GenerationOptions
from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.decoding.steering.trained_heads import TrainedHeads
from mav.pipeline.decoding.structured.schema import require_library
from mav.pipeline.decoding.structured.vocabulary import GrammarVocabulary
from mav.pipeline.decoding.trained_head import TrainedHead
from mav.pipeline.head.compatibility import check_hidden_size, check_vocabulary, map_layers
from mav.pipeline.head.model import AlignmentHead, is_quantized
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.preferences.prompt_format import (
    PromptFormat,
    choose_prompt_format,
)
from mav.pipeline.runtime.load_options import LoadOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How a base differs from the one a head was trained on.

    Attributes:
        warnings: What may change what the head does.
        notes: What else there is to say.
    """

    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def log(self) -> None:
        """Log them."""
        for warning in self.warnings:
            _log.warning(warning)
        for note in self.notes:
            _log.info(note)


@dataclass(frozen=True, kw_only=True)
class AttachedModel:
    """A base with a compatible head attached, or with several.

    Attributes:
        base: The base.
        aligned: Base and heads together; alpha is 0 until it is set.
        form: Form of prompts.
        settings: Fields of `GenerationOptions` that take the place of its defaults.
        differences: How the base differs from those that the heads were trained on.
        names: Of the heads; none of one head without a name.
    """

    base: BaseModel
    aligned: AlignedLM
    form: PromptFormat
    settings: Mapping[str, Any] = field(default_factory=dict)
    differences: Differences = field(default_factory=Differences)
    names: tuple[str, ...] = ()

    def response_text(self, decoding: GenerationOptions) -> ResponseText:
        """Return what makes text of a response's tokens."""
        stops = (*self.form.stops, *decoding.stop)
        return ResponseText(self.base.tokenizer, stops, strip=True)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a response in this form of prompts."""
        return self.base.end_tokens | {self.form.end_token}

    @property
    def vocabulary(self) -> GrammarVocabulary:
        """The base's tokens as grammars take them, made when it is first asked for.

        Raises:
            UsageError: llguidance is not installed, or cannot read the tokenizer.
        """
        require_library()
        if isinstance(self._vocabulary, UsageError):
            raise self._vocabulary
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> GrammarVocabulary | UsageError:
        try:
            return GrammarVocabulary(self.base.tokenizer, self.base.vocab_size, self.end_tokens)
        except UsageError as error:
            # Kept too, as finding it out again takes as long.
            return error

    def close(self) -> None:
        """Remove the hooks from the base."""
        self.aligned.__exit__()


def load_compatible_base(
    source: BaseSource, trained: TrainedHeads, rules: AttachOptions, placement: LoadOptions
) -> BaseModel:
    """Load a base after checking its configuration and tokenizer against heads.

    Args:
        source: Its files.
        trained: The heads.
        rules: What the user allows and wants.
        placement: In what type and where.

    Raises:
        MAVError: It cannot be loaded or does not belong to the heads.
    """
    source = with_copy(source, gguf_cache=placement.gguf_cache)
    check_compatible(preview_base(source), trained, rules)
    return load_source(source, placement)


def check_compatible(
    base: BaseModel, trained: TrainedHead | TrainedHeads, rules: AttachOptions
) -> tuple[tuple[int, ...], Differences]:
    """Check that a base is compatible with heads, its weights loaded or not.

    Args:
        base: The base.
        trained: The heads.
        rules: What the user allows.

    Returns:
        The layers of this base that the heads read, and how it differs from the heads' own bases.

    Raises:
        MismatchError: It is not, or the heads are not with each other.
        UsageError: Prompts cannot take the form the user wants.
    """
    heads = TrainedHeads.of(trained)
    heads.require_together(rules)
    found = [_check_one(base, part, rules) for part in heads.parts]
    layers = found[0][0]
    assert all(read == layers for read, _ in found)
    warnings = [warning for _, differences in found for warning in differences.warnings]
    dates = list(dict.fromkeys(part.template_date for part in heads.parts))
    if len(dates) > 1 and rules.template_date is None:
        warnings.append(
            f"The heads' chat templates were given different dates ({dates[0]} and {dates[1]}); "
            f"the first is used, unless `template_date` says another"
        )
    notes = [note for _, differences in found for note in differences.notes]
    return layers, Differences(
        warnings=tuple(dict.fromkeys(warnings)), notes=tuple(dict.fromkeys(notes))
    )


def _check_one(
    base: BaseModel, trained: TrainedHead, rules: AttachOptions
) -> tuple[tuple[int, ...], Differences]:
    """Check that a base is compatible with a head; see `check_compatible`."""
    record = dataclasses.replace(base.fingerprint(), id=base.id)  # as the user knows it
    check_vocabulary(
        trained.base,
        record,
        trained.name,
        "the base",
        other_tokenizer=rules.allow_tokenizer_mismatch,
    )
    check_hidden_size(trained.head.config, record, trained.name, "the base")
    _form(base, trained, rules)
    layers = map_layers(trained.states, trained.base, record)
    warnings, notes = [], []
    if record.tokenizer_digest != trained.base.tokenizer_digest:
        warnings.append(
            f"{record.id} has another tokenizer than the base the head was trained on "
            f"({trained.base.id}): what the head raises may be other tokens than it learned of"
        )
    if record.quantization != trained.base.quantization:
        warnings.append(
            f"{record.id} is {_precision(record.quantization)}, and the base the head was trained "
            f"on was {_precision(trained.base.quantization)}: its states differ a little"
        )
    if base.source is None and not trained.base.id.startswith(IN_MEMORY):
        notes.append(
            f"{record.id} is a model in memory, of which nothing tells whether it is the base the "
            f"head was trained on ({trained.base.id}); reading its layers {list(layers)}"
        )
    elif record.weights_digest != trained.base.weights_digest:
        notes.append(
            f"{record.id} is another base than the head was trained on ({trained.base.id}); "
            f"reading its layers {list(layers)}"
        )
    return layers, Differences(warnings=tuple(warnings), notes=tuple(notes))


def _precision(quantization: str | None) -> str:
    return "in full precision" if quantization is None else f"quantized ({quantization})"


def attach_head(
    base: BaseModel, trained: TrainedHead | TrainedHeads, rules: AttachOptions
) -> AttachedModel:
    """Attach a head, or several, to a loaded base, on the base's device and in its type.

    Raises:
        MAVError: They do not belong together.
    """
    several = TrainedHeads.of(trained)
    layers, differences = check_compatible(base, several, rules)
    if any(part.head.config.acts_on_state for part in several.parts):
        base.require_linear_output()
    settings = _base_settings(base, rules)
    heads = [_placed(part, base) for part in several.parts]
    aligned = AlignedLM(base, heads if several.names else heads[0], layers)
    return AttachedModel(
        base=base,
        aligned=aligned.__enter__(),
        form=_form(base, several.parts[0], rules),
        settings=settings,
        differences=differences,
        names=several.names,
    )


def _placed(trained: TrainedHead, base: BaseModel) -> AlignmentHead:
    head = trained.head
    if trained.borrowed and head.device != base.logits_device:
        head = copy.deepcopy(head)
    head = head.to(base.logits_device)
    # One in int8 computes in the type it was quantized from, which is that of all bases under it.
    if head.dtype != base.dtype and not is_quantized(head):
        # The one that was loaded keeps its digits for the bases to come.
        head = copy.deepcopy(head).to(base.dtype)
    return head


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
