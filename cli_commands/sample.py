"""`mav sample`: several answers to each prompt, for preference pairs of your own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mav.cli_commands.shared.answering import ALPHA, LOADING
from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, OneOnly, field_of, fields_of, made_of
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions
from mav.pipeline.rounds.options import SampleOptions
from mav.pipeline.runtime.named_values import heads_of


@command(
    """
  mav sample --base-model meta-llama/Llama-2-7b-hf --prompts prompts.jsonl --output samples.jsonl
  mav sample --head runs/head --alpha 1 --n 8 --prompts pairs.jsonl --output samples.jsonl
"""
)
@field_of(SampleOptions, "head", multiple=True)
@field_of(SampleOptions, "base_model", cls=OneOnly)
@LOADING
@field_of(SampleOptions, "prompts", cls=OneOnly)
@fields_of(SampleOptions, "limit", "n", "batch_size")
@ALPHA
@fields_of(GenerationOptions, "steer_above", "max_new_tokens")
@field_of(GenerationOptions, "temperature", default=1.0)
@fields_of(GenerationOptions, "top_k", "top_p", "min_p", "repetition_penalty")
@fields_of(GenerationOptions, "frequency_penalty", "presence_penalty", "seed", "stop")
@field_of(SampleOptions, "output", cls=OneOnly, type=click.Path(path_type=Path))
@JSON
def sample_command(
    *,
    head: Sequence[str],
    as_json: bool,
    **given: Any,
) -> None:
    """Sample several answers to each prompt from base and head, or from the base alone.

    The same command resumes an interrupted run. `mav pairs` makes preference pairs of the answers.
    """
    from mav.pipeline.rounds.sample import sample

    options = made_of(
        SampleOptions,
        {
            **given,
            "head": heads_of(head) if head else None,
            "decoding": made_of(GenerationOptions, given),
        },
    )
    report = sample(options, made_of(InferenceOptions, given))
    failed = f", {report.failed:,} failed" if report.failed else ""
    text = f"{report.output}: {report.answers:,} answers to {report.prompts:,} prompts{failed}"
    print_result(as_json, report.to_json(), text)
    if report.failed:
        raise SystemExit(1)
