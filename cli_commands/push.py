"""`mav push`: send a head to the hub, with a model card."""

from typing import Any

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, Numbers, OneOnly, field_of
from mav.pipeline.evaluation.options import EvaluateOptions


@command(
    """
  mav push --head runs/head me/llama-polite
  mav push --head runs/head me/llama-polite --cache llama.cache --private
"""
)
@click.argument("repository")
@click.option("--head", cls=OneOnly, required=True, help="Folder of a head or of a training run.")
@click.option(
    "--cache",
    cls=OneOnly,
    help="Cache whose held-out pairs fill the card's table by alpha.  [default: what training "
    "measured]",
)
@field_of(EvaluateOptions, "alphas", type=Numbers())
@click.option("--private", is_flag=True, help="Make a new repository a private one.")
@click.option("--revision", help="Branch to send it to.  [default: the main one]")
@click.option("--message", default="Upload an alignment head", help="Message of the commit.")
@JSON
def push_command(
    *,
    repository: str,
    head: str,
    cache: str | None,
    alphas: tuple[float, ...],
    private: bool,
    revision: str | None,
    message: str,
    as_json: bool,
) -> None:
    """Send a head to the Hugging Face hub, with a model card; needs a token that may write."""
    from mav.pipeline.evaluation.evaluate import curve_of, evaluate
    from mav.pipeline.head.push import push_folder
    from mav.pipeline.head.storage import find_head

    folder = find_head(head)
    found: Any = ()
    if cache is not None:
        found = curve_of(evaluate(EvaluateOptions(head=head, cache=cache, alphas=alphas)))
    address = push_folder(
        folder,
        repository,
        private=private or None,
        revision=revision,
        commit_message=message,
        curve=found,
    )
    print_result(as_json, {"repository": repository, "commit": address}, address)
