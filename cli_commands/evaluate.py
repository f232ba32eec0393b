"""`mav evaluate`: measure a head on cached pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from mav.cli_commands._errors import command, print_result
from mav.cli_commands._options import DEVICE, DTYPE, JSON, Numbers, OneOnly

_NO_BF16: Final = "mav.no_bf16"


@command(
    """
  mav evaluate --head runs/head --cache llama.cache --alphas 0,0.5,1,2 --plot alphas.png
  mav evaluate --head runs/head --cache llama.cache --report report.html
"""
)
@click.option("--head", cls=OneOnly, required=True, help="Folder or hub id of a head.")
@click.option("--cache", cls=OneOnly, required=True, help="Cache to use: folder or URL.")
@click.option("--alphas", cls=OneOnly, type=Numbers(), default="0,0.5,1,1.5,2", help="Strengths.")
@click.option(
    "--pairs",
    "which",
    type=click.Choice(["held-out", "training", "all"]),
    help="Part of the cache.  [default: held-out where it is the training data, else all]",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy and KL to a file.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    help="Write a page of plots and tables, training curves among them, to an HTML file.",
)
@DTYPE
@DEVICE
@JSON
def evaluate_command(
    *,
    head: str,
    cache: str,
    alphas: Sequence[float],
    which: Any,
    plot: Path | None,
    report_file: Path | None,
    dtype: Any,
    device: str,
    as_json: bool,
) -> None:
    """Measure a head at several alphas on cached pairs; the base model is not needed."""
    from mav.pipeline.evaluation.evaluate import evaluate
    from mav.pipeline.reporting import html as html_report
    from mav.pipeline.reporting import tables as report

    if plot is not None:
        report.require_plot(plot)
    if report_file is not None:
        html_report.require_report(report_file)
    found = evaluate(head, cache, alphas, which=which, dtype=dtype, device=device)
    print_result(as_json, found.to_json(), report.table(found))
    if plot is not None:
        report.plot(found, plot)
    if report_file is not None:
        html_report.write_report(found, report_file)
