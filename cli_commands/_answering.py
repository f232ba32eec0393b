"""Options and loading that the commands which decode share."""

import logging
from typing import Any

import click
from click.core import ParameterSource

from mav.cli_commands._options import BASE, PLACEMENT, Number, OneOnly, Strength, options

_log = logging.getLogger(__name__)

HEAD_AND_BASE = options(
    click.option("--head", cls=OneOnly, required=True, help="Folder or hub id of a head."),
    BASE,
    click.option(
        "--prompt-form",
        type=click.Choice(["auto", "hh", "chat"]),
        default="auto",
        help="HH-RLHF's transcript, or the base's chat template; auto is what the head knows.",
    ),
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
    click.option(
        "--base-generation-config",
        is_flag=True,
        help="Decode as the base's generation_config says, where no option is given.",
    ),
    PLACEMENT,
)
BASE_MODEL = click.option(
    "--base-model",
    cls=OneOnly,
    help="Base to decode with.  [default: the one it was trained on]",
)
SAMPLING = options(
    click.option("--max-new-tokens", default=128, help="Most tokens of an answer."),
    click.option("--temperature", type=Number(), default=0.0, help="0 is greedy."),
    click.option("--top-k", default=0, help="Most probable tokens to sample from; 0 is all."),
    click.option("--top-p", type=Number(), default=1.0, help="Nucleus to sample from."),
    click.option(
        "--min-p", type=Number(), default=0.0, help="Least probability, relative to the largest."
    ),
    click.option(
        "--repetition-penalty", type=Number(), default=1.0, help="1 leaves repetition alone."
    ),
    click.option("--seed", type=int, help="Of the sampling."),
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
    from dataclasses import fields

    from mav.pipeline.decoding.options import GenerationOptions

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
