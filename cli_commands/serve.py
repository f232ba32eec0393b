"""`mav serve`: an API and a page."""

from collections.abc import Sequence
from typing import Any

from mav.cli_commands._answering import HEAD_AND_BASE
from mav.cli_commands._errors import command
from mav.cli_commands._options import OneOnly, Strength, field_of, fields_of
from mav.pipeline.runtime.named_values import heads_of
from mav.pipeline.serving.options import ServeOptions


@command(
    """
  mav serve --head runs/head
  mav serve --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0.5
  mav serve --head runs/head --base-model base-a --base-model base-b --port 8080
  mav serve --head runs/head --host 0.0.0.0 --api-key SECRET
"""
)
@HEAD_AND_BASE
@field_of(ServeOptions, "bases", flag="--base-model")
@field_of(ServeOptions, "alpha", cls=OneOnly, type=Strength())
@fields_of(ServeOptions, "steer_above", "host", "port")
@field_of(ServeOptions, "api_key", envvar="MAV_API_KEY", show_envvar=True)
@fields_of(ServeOptions, "max_rows", "max_queue", "max_new_tokens", "max_prompt_tokens")
def serve_command(*, head: Sequence[str], **options: Any) -> None:
    """Serve an OpenAI-compatible API, and a page on which the alpha of each head is a slider."""
    from mav.pipeline.serving.server import serve

    serve(ServeOptions(head=heads_of(head), **options))
