"""`mav inspect`: show what a cache or a head is."""

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON


@command(
    """
  mav inspect llama.cache
  mav inspect runs/head --json
"""
)
@click.argument("path")
@JSON
def inspect_command(*, path: str, as_json: bool) -> None:
    """Show what a cache or a head is."""
    from mav.pipeline.reporting.inspect import describe, screen

    description = describe(path)
    print_result(as_json, description, screen(description))
