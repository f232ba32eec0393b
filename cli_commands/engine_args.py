"""`mav engine-args`: what vLLM needs to be told to have heads in it."""

from collections.abc import Sequence
from typing import Any

import click

from mav.cli_commands.shared.answering import ALPHA, BASE_MODEL
from mav.cli_commands.shared.errors import command
from mav.cli_commands.shared.options import JSON, field_of, fields_of
from mav.pipeline.decoding.options import InferenceOptions
from mav.pipeline.runtime.load_options import BaseOptions
from mav.pipeline.runtime.named_values import heads_of
from mav.pipeline.serving.options import ServeOptions

UNTESTED = click.option(
    "--allow-untested-vllm", is_flag=True, help="Accept a release of vLLM that was not tested."
)


@command(
    """
  mav engine-args --head runs/head
  mav engine-args --head runs/head --json
  mav engine-args --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0
"""
)
@field_of(ServeOptions, "head", multiple=True)
@BASE_MODEL
@ALPHA
@fields_of(BaseOptions, "gguf_file", "gguf_cache", "revision")
@fields_of(InferenceOptions, "prompt_form", "allow_tokenizer_mismatch")
@UNTESTED
@JSON
def engine_args_command(
    *, head: Sequence[str], base_model: str | None, alpha: Any, as_json: bool, **options: Any
) -> None:
    """Print the command that starts vLLM with heads in it; with --json, arguments of vllm.LLM."""
    import json

    from mav.pipeline.engine.arguments import prepare_engine

    given = 1.0 if alpha is None else alpha
    prepared = prepare_engine(heads_of(head), base_model, alpha=given, **options)
    click.echo(json.dumps(dict(prepared.arguments), indent=1) if as_json else prepared.text)
