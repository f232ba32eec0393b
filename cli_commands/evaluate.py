"""`mav evaluate`: measure a head on cached pairs."""

from pathlib import Path
from typing import Any

import click

from mav.cli_commands._errors import command, print_result
from mav.cli_commands._options import JSON, OneOnly, field_of, fields_of
from mav.pipeline.evaluation.options import EvaluateOptions


@command(
    """
  mav evaluate --head runs/head --cache llama.cache --alphas 0,0.5,1,2 --plot alphas.png
  mav evaluate --head runs/head --cache llama.cache --report report.html
"""
)
@field_of(EvaluateOptions, "head", cls=OneOnly)
@field_of(EvaluateOptions, "cache", cls=OneOnly)
@field_of(EvaluateOptions, "alphas", cls=OneOnly)
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
    *, plot: Path | None, report_file: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure a head at several alphas on cached pairs; the base model is not needed."""
    from mav.pipeline.evaluation.evaluate import evaluate
    from mav.pipeline.reporting import html as html_report
    from mav.pipeline.reporting import tables as report

    if plot is not None:
        report.require_plot(plot)
    if report_file is not None:
        html_report.require_report(report_file)
    evaluation = evaluate(EvaluateOptions(**options))
    print_result(as_json, evaluation.to_json(), report.table(evaluation))
    if plot is not None:
        report.plot(evaluation, plot)
    if report_file is not None:
        html_report.write_report(evaluation, report_file)
