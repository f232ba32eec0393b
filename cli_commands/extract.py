"""`mav extract`: run a base over preference pairs and write the cache."""

from typing import Any

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import BASE, JSON, PLACEMENT, Columns, field_of, fields_of
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource


@command(
    """
  mav extract --base-model meta-llama/Llama-2-7b-hf --dataset Anthropic/hh-rlhf \\
      --data-dir harmless-base --output llama.cache
"""
)
@fields_of(ExtractOptions, "base_model")
@BASE
@click.option(
    "--dataset",
    "data",
    required=True,
    multiple=True,
    help="File, folder, or hub id; may be repeated. Takes its own data_dir=, split=, "
    "limit=, weight=, held_out= and columns= (prompt:question+chosen:good) after commas.",
)
@fields_of(DataSource, "data_dir", "split")
@fields_of(
    ExtractOptions,
    *("output", "layer_selection", "num_layers", "pooled_size", "max_length", "prompt_form"),
    *("template_date", "logits", "top_k", "compression", "storage_dtype"),
)
@fields_of(DataSource, "limit")
@field_of(DataSource, "columns", type=Columns())
@fields_of(ExtractOptions, "batch_tokens")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing; show bytes, free space and hours, from a short timed sample.",
)
@PLACEMENT
@fields_of(ExtractOptions, "allow_dtype_mismatch")
@JSON
def extract_command(
    *,
    dry_run: bool,
    data: tuple[str, ...],
    data_dir: str | None,
    split: str,
    limit: int | None,
    columns: dict[str, str] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a frozen base once over preference pairs and write the cache.

    The same command resumes an interrupted run, and leaves a complete cache unchanged. Several
    processes (accelerate launch, torchrun) share the work.
    """
    from mav.pipeline.extraction.dry_run import dry_run as measure
    from mav.pipeline.extraction.dry_run import screen
    from mav.pipeline.extraction.extract import extract
    from mav.pipeline.preferences.sources import parse_source

    defaults = DataSource(id="", data_dir=data_dir, split=split, limit=limit, columns=columns)
    sources = tuple(parse_source(dataset, defaults) for dataset in data)
    asked = ExtractOptions(data=sources, **options)
    if dry_run:
        expected = measure(asked)
        print_result(as_json, expected.to_json(), screen(expected))
        return
    report = extract(asked)
    figures = report.to_json()
    rate = figures["pairs_per_second"]
    speed = f" at {rate:.1f} pairs/s" if rate else ""
    print_result(
        as_json,
        figures,
        f"{options['output']}: {figures['pairs']:,} pairs, {figures['response_tokens']:,} response "
        f"tokens, {figures['stored_bytes'] / 1e9:.2f} GB{speed}",
    )
