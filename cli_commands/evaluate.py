"""`mav evaluate`: measure a head on cached pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, NamedNumbers, OneOnly, field_of, fields_of
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.runtime.named_values import heads_of


@command(
    """
  mav evaluate --head runs/head --cache llama.cache --alphas 0,0.5,1,2 --plot alphas.png
  mav evaluate --head runs/head --cache llama.cache --report report.html
  mav evaluate --head helpful=runs/a --head harmless=runs/b --cache llama.cache \\
    --alpha helpful=1,harmless=0.5
"""
)
@field_of(EvaluateOptions, "head", multiple=True)
@field_of(EvaluateOptions, "cache", cls=OneOnly)
@field_of(EvaluateOptions, "alphas", cls=OneOnly)
@field_of(EvaluateOptions, "alpha", cls=OneOnly, type=NamedNumbers())
@fields_of(EvaluateOptions, "pairs")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy and KL to a file.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    help="Write plots, tables and training curves to an HTML file.",
)
@fields_of(EvaluateOptions, "dtype", "device")
@JSON
def evaluate_command(
    *,
    head: Sequence[str],
    plot: Path | None,
    report_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a head at several alphas on cached pairs; the base model is not needed.

    Of several heads, --alpha names the strength of each, and --alphas multiply them all.
    """
    heads = heads_of(head)
    if report_file is not None and not isinstance(heads, str):
        raise click.UsageError("--report shows the training of one head; leave it out, or --plot")
    from mav.pipeline.evaluation.evaluate import evaluate
    from mav.pipeline.reporting import html as html_report
    from mav.pipeline.reporting import tables as report

    if plot is not None:
        report.require_plot(plot)
    if report_file is not None:
        html_report.require_report(report_file)
    evaluation = evaluate(EvaluateOptions(head=heads, **options))
    print_result(as_json, evaluation.to_json(), report.table(evaluation))
    if plot is not None:
        report.plot(evaluation, plot)
    if report_file is not None:
        html_report.write_report(evaluation, report_file)
