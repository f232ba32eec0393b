"""`mav serve`: an API and a page."""

from typing import Any

import click

from mav.cli_commands._answering import (
    HEAD_AND_BASE,
)
from mav.cli_commands._errors import command
from mav.cli_commands._options import Number


@command(
    """
  mav serve --head runs/head
  mav serve --head runs/head --base-model base-a --base-model base-b --port 8080
  mav serve --head runs/head --host 0.0.0.0 --api-key SECRET
"""
)
@HEAD_AND_BASE
@click.option(
    "--base-model",
    "bases",
    multiple=True,
    help="Base to serve; several may be chosen from.  [default: the one it was trained on]",
)
@click.option("--alpha", type=Number(), default=1.0, help="Strength where a request names none.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=8000, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--api-key",
    envvar="MAV_API_KEY",
    show_envvar=True,
    help="Key that clients must send; needed beyond this machine.",
)
@click.option("--max-rows", default=16, help="Answers decoded at once.")
@click.option("--max-queue", default=64, help="Requests that may wait.")
@click.option("--max-new-tokens", default=1024, help="Most tokens a request may ask for.")
@click.option("--max-prompt-tokens", default=8192, help="Most tokens of a prompt.")
def serve_command(*, bases: tuple[str, ...], **others: Any) -> None:
    """Serve an OpenAI-compatible API, and a page on which alpha is a slider."""
    from mav.pipeline.serving.options import ServeOptions
    from mav.pipeline.serving.server import serve

    serve(ServeOptions(bases=bases, **others))
