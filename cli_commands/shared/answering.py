"""Options and loading shared by the commands that decode."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mav.cli_commands.shared.options import (
    BASE,
    PLACEMENT,
    OneOnly,
    Strength,
    field_of,
    fields_of,
    made_of,
    options,
)
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions
from mav.pipeline.runtime.named_values import heads_of, names_of
from mav.pipeline.serving.options import ServeOptions

if TYPE_CHECKING:
    from mav.pipeline.decoding.inference import MAVInference
    from mav.pipeline.decoding.steering import strengths

_log = logging.getLogger(__name__)

LOADING = options(
    BASE,
    fields_of(
        InferenceOptions,
        *("prompt_form", "template_date", "allow_tokenizer_mismatch", "int8_head"),
    ),
    PLACEMENT,
)
HEAD_AND_BASE = options(
    field_of(ServeOptions, "head", multiple=True),
    LOADING,
    fields_of(InferenceOptions, "base_generation_config"),
)
BASE_MODEL = click.option(
    "--base-model",
    cls=OneOnly,
    help="Base to decode with.  [default: the one it was trained on]",
)
SAMPLING = fields_of(
    GenerationOptions,
    *("steer_above", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "seed"),
)
ALPHA = click.option(
    "--alpha",
    cls=OneOnly,
    type=Strength(),
    help="Strength; 0 is the base itself, 0:2,64:0.5 a schedule over tokens; of several heads "
    "helpful=1,harmless=0.5.  [default: what the head is recommended with, or 1.0, of one head]",
)


@dataclass(frozen=True, kw_only=True)
class DecodingRequest:
    """Head, base and options to decode with.

    Attributes:
        head: Folder of a head or of a training run, or a hub id; or several by name.
        base_model: The base; the one the head was trained on if None.
        inference: How both are loaded.
        decoding: How tokens are chosen, regardless of the base's generation_config.
        given: The fields of `decoding` that the user set.
    """

    head: str | dict[str, str]
    base_model: str | None
    inference: InferenceOptions
    decoding: GenerationOptions
    given: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DecodingRequest":
        """Build it from the options of the running command.

        Args:
            values: Values of `HEAD_AND_BASE`, `BASE_MODEL` and `GenerationOptions`.

        Raises:
            UsageError: An option is invalid.
        """
        kinds = (cls, InferenceOptions, GenerationOptions)
        assert values.keys() <= {field.name for kind in kinds for field in fields(kind)}
        source = click.get_current_context().get_parameter_source
        return cls(
            head=heads_of(values["head"]),
            base_model=values["base_model"],
            inference=made_of(InferenceOptions, values),
            decoding=made_of(GenerationOptions, values),
            given={
                field.name: values[field.name]
                for field in fields(GenerationOptions)
                if field.name in values and source(field.name) is not ParameterSource.DEFAULT
            },
        )

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads; none of one head without a name."""
        return names_of(self.head)

    def strength(self, alpha: Any) -> "strengths.Strength":
        """Return the strength that `--alpha` asks for.

        If None, that with which the head is recommended, or 1, where there is one head alone.

        Raises:
            UsageError: It names other heads than there are, or does not name them all.
        """
        from mav.pipeline.decoding.steering.strengths import as_strength

        if alpha is None and isinstance(self.head, str):
            from mav.pipeline.decoding.trained_head import starting_alpha

            alpha = starting_alpha(self.head)
        return as_strength(1.0 if alpha is None else alpha, self.head_names)

    def load(self) -> "tuple[MAVInference, GenerationOptions]":
        """Return base and head, and the options of generation for this base."""
        from mav.pipeline.decoding.inference import MAVInference

        mav = MAVInference.from_options(self.head, self.base_model, self.inference)
        decoding = mav.decoding(**self.given)
        unused = [f"`{name}`" for name in decoding.unused if name in self.given]
        if unused:
            _log.warning(
                f"Without `temperature` nothing is sampled, so {', '.join(unused)} changes nothing"
            )
        return mav, decoding
