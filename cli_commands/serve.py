"""`mav serve`: an API and a page, of MAV's own or in front of vLLM."""

from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from mav.cli_commands.engine_args import UNTESTED
from mav.cli_commands.shared.answering import HEAD_AND_BASE
from mav.cli_commands.shared.errors import command
from mav.cli_commands.shared.logging import lines_to_stdout
from mav.cli_commands.shared.options import OneOnly, Strength, field_of, fields_of
from mav.pipeline.runtime.named_values import heads_of
from mav.pipeline.serving.options import ACCESS_LOGGER, ServeOptions


@command(
    """
  mav serve --head runs/head
  mav serve --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0.5
  mav serve --head runs/head --base-model base-a --base-model base-b --port 8080
  mav serve --head runs/head --host 0.0.0.0 --api-key SECRET
  mav serve --head runs/head --engine vllm -- --tensor-parallel-size 2 --max-model-len 8192
"""
)
@HEAD_AND_BASE
@field_of(ServeOptions, "bases", flag="--base-model")
@field_of(ServeOptions, "alpha", cls=OneOnly, type=Strength())
@fields_of(ServeOptions, "steer_above", "host", "port")
@field_of(ServeOptions, "api_key", envvar="MAV_API_KEY", show_envvar=True)
@fields_of(ServeOptions, "served_model_name", "allow_origin")
@field_of(ServeOptions, "access_log")
@fields_of(ServeOptions, "max_rows", "max_queue", "max_new_tokens", "max_prompt_tokens")
@click.option(
    "--engine",
    type=click.Choice(["mav", "vllm"]),
    default="mav",
    help="mav serves several bases on one machine, vllm many users; it needs the extra vllm.",
)
@UNTESTED
@click.argument("vllm_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_OPTIONS]...")
def serve_command(
    *,
    head: Sequence[str],
    engine: str,
    vllm_options: tuple[str, ...],
    allow_untested_vllm: bool,
    **options: Any,
) -> None:
    """Serve an OpenAI-compatible API, and a page on which the alpha of each head is a slider."""
    asked = ServeOptions(head=heads_of(head), **options)
    if engine == "vllm":
        from mav.pipeline.engine.launch import serve_with_vllm

        source = click.get_current_context().get_parameter_source
        given = [name for name in options if source(name) is not ParameterSource.DEFAULT]
        untested = allow_untested_vllm
        serve_with_vllm(asked, given, vllm_options, allow_untested_vllm=untested)
        return
    if vllm_options or allow_untested_vllm:
        what = vllm_options[0] if vllm_options else "--allow-untested-vllm"
        raise click.UsageError(f"got {what}, which is for --engine vllm alone")
    from mav.pipeline.serving.server import serve

    with lines_to_stdout(ACCESS_LOGGER):
        serve(asked)
