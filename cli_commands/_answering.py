"""Options and loading that the commands which decode share."""

import logging
from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from mav.cli_commands._options import (
    BASE,
    PLACEMENT,
    OneOnly,
    Strength,
    field_of,
    fields_of,
    options,
)
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.serving.options import ServeOptions

_log = logging.getLogger(__name__)

LOADING = options(
    BASE,
    field_of(ServeOptions, "prompt_form"),
    click.option(
        "--template-date",
        metavar="DATE",
        help="Date given to a chat template that asks for it: YYYY-MM-DD or today.  "
        "[default: as in training]",
    ),
    click.option(
        "--allow-tokenizer-mismatch",
        is_flag=True,
        help="Take a base whose tokenizer is another one of the same size.",
    ),
    click.option(
        "--int8-head", is_flag=True, help="Keep the head in a byte per weight; needs torchao."
    ),
    PLACEMENT,
)
HEAD_AND_BASE = options(
    click.option("--head", cls=OneOnly, required=True, help="Folder or hub id of a head."),
    LOADING,
    click.option(
        "--base-generation-config",
        is_flag=True,
        help="Decode as the base's generation_config says, where no option is given.",
    ),
)
BASE_MODEL = click.option(
    "--base-model",
    cls=OneOnly,
    help="Base to decode with.  [default: the one it was trained on]",
)
SAMPLING = fields_of(
    GenerationOptions,
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
)
ALPHA = click.option(
    "--alpha",
    cls=OneOnly,
    type=Strength(),
    help="Strength; 0 is the base itself, 0:2,64:0.5 a schedule over tokens.  [default: 1.0]",
)


def decoding_of(others: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take what says how tokens are chosen out of a command's options.

    Returns:
        It, and the fields of it that the user named.
    """
    context = click.get_current_context()
    named = {
        field.name: others.pop(field.name)
        for field in fields(GenerationOptions)
        if field.name in others
    }
    given = {
        name: value
        for name, value in named.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    return GenerationOptions(**named), given


def load(base_model: str | None, given: dict[str, Any], others: dict[str, Any]) -> tuple[Any, Any]:
    """Return head and base, and how tokens are chosen."""
    from mav.pipeline.decoding.inference import MAVInference

    mav = MAVInference(others.pop("head"), base_model, **others)
    decoding = mav.decoding(**given)
    unused = [one for one in decoding.unused if one.strip("-").replace("-", "_") in given]
    if unused:
        _log.warning(
            f"Without --temperature nothing is sampled, so {', '.join(unused)} changes nothing"
        )
    return mav, decoding
