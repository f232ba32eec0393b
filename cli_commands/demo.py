"""`mav demo`: the whole pipeline on shipped pairs."""

from pathlib import Path

import click

from mav.cli_commands.shared.errors import command


@command(
    """
  mav demo
"""
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    help="Folder for all output.",
)
@click.option("--base-model", help="Base to use instead of the installed SmolLM2-135M-Instruct.")
def demo_command(*, output_dir: Path, base_model: str | None) -> None:
    """Extract, train, evaluate and decode on a shipped sample, in a few minutes on a CPU."""
    from mav.pipeline.demo.run import run_demo

    run_demo(output_dir, base_model, write=click.echo)
