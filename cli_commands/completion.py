"""`mav completion`: a script that completes commands and options in a shell."""

import click

from mav.cli_commands.shared.errors import command

_VARIABLE = "_MAV_COMPLETE"
"""Which click reads when a shell asks for completions; made of the command's name."""


@command(
    """
  mav completion bash
"""
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion_command(ctx: click.Context, *, shell: str) -> None:
    """Print a script that completes commands, options and files in a shell.

    In ~/.bashrc: eval "$(mav completion bash)"; in ~/.zshrc the same with zsh; for fish in
    ~/.config/fish/completions/mav.fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click completes in the shells that are offered"
    made = kind(ctx.find_root().command, {}, "mav", _VARIABLE)
    click.echo(made.source_template % made.source_vars())
