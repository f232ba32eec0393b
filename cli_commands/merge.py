"""`mav merge`: the weighted sum of heads as one head."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, NamedNumbers, OneOnly
from mav.pipeline.runtime.named_values import heads_of


@command(
    """
  mav merge --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0.5 \\
    --output runs/both
"""
)
@click.option(
    "--head",
    multiple=True,
    required=True,
    metavar="NAME=HEAD",
    help="Folder or hub id of a head; given again for each.",
)
@click.option(
    "--alpha",
    cls=OneOnly,
    required=True,
    type=NamedNumbers(),
    metavar="NAME=ALPHA,…",
    help="The part of each head in the sum.",
)
@click.option(
    "--output",
    cls=OneOnly,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the merged head.",
)
@JSON
def merge_command(
    *, head: Sequence[str], alpha: Mapping[str, float], output: Path, as_json: bool
) -> None:
    """Write the weighted sum of several heads of one kind and base as one head, exactly."""
    heads = heads_of(head)
    if isinstance(heads, str):
        raise click.UsageError("--head: got one without a name, expected NAME=HEAD of each")
    from mav.pipeline.head.merge import merge_heads

    merged = merge_heads(heads, alpha, output)
    total = merged.config.total_parameters
    found = {"output": str(output), "head_type": merged.config.kind, "parameters": total}
    print_result(as_json, found, f"{output}: one {merged.config.kind} head of {total:,} parameters")
