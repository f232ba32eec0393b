"""`mav pairs`: preference pairs of sampled answers and their scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, OneOnly, field_of, fields_of
from mav.pipeline.rounds.options import PairOptions
from mav.pipeline.runtime.load_options import BaseOptions


@command(
    """
  mav pairs --samples samples.jsonl --reward-model runs/reward --output pairs.jsonl
  mav pairs --samples samples.jsonl --scores scores.jsonl --rule all --margin 0.5 \\
    --output pairs.jsonl
"""
)
@field_of(PairOptions, "samples", required=True)
@field_of(PairOptions, "reward_model", cls=OneOnly)
@field_of(PairOptions, "scores", cls=OneOnly, type=click.Path(path_type=Path))
@fields_of(PairOptions, "rule", "margin")
@fields_of(BaseOptions, "dtype", "device")
@field_of(PairOptions, "output", cls=OneOnly, type=click.Path(path_type=Path))
@JSON
def pairs_command(
    *, samples: Sequence[str], dtype: str, device: str, as_json: bool, **given: Any
) -> None:
    """Make preference pairs of sampled answers, by a reward model or by a file of scores."""
    from mav.pipeline.rounds.pairs import left_out, make_pairs

    options = PairOptions(samples=tuple(samples), **given)
    report = make_pairs(options, dtype=dtype, device=device)
    without = left_out(report)
    text = f"{report.output}: {report.pairs:,} pairs of {report.prompts:,} prompts"
    print_result(as_json, report.to_json(), f"{text}; left out: {without}" if without else text)
