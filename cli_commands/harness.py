"""`mav harness`: tasks of lm-eval at several alphas."""

from pathlib import Path
from typing import Any

import click

from mav.cli_commands.shared.answering import BASE_MODEL
from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import (
    BASE,
    JSON,
    PLACEMENT,
    Numbers,
    OneOnly,
    field_of,
    fields_of,
)
from mav.pipeline.decoding.options import InferenceOptions
from mav.pipeline.harness.options import HarnessOptions


@command(
    """
  mav harness --head runs/head --tasks blimp,lambada_openai --alphas 0,1,2
  mav harness --head runs/head --tasks my_task --include-path tasks --limit 200 --json
"""
)
@click.option("--head", cls=OneOnly, required=True, help="Folder or hub id of a head.")
@BASE_MODEL
@click.option("--alphas", cls=OneOnly, type=Numbers(), default="0,1,2", help="Strengths.")
@click.option(
    "--tasks",
    cls=OneOnly,
    required=True,
    help="Tasks, groups or tags of lm-eval, separated by commas; * matches anything.",
)
@click.option(
    "--include-path",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder with your own task files; may be repeated.",
)
@fields_of(HarnessOptions, "limit", "num_fewshot", "batch_size")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Also write the result to a file, as JSON."
)
@BASE
@field_of(InferenceOptions, "allow_tokenizer_mismatch")
@PLACEMENT
@JSON
def harness_command(
    *,
    head: str,
    base_model: str | None,
    alphas: tuple[float, ...],
    tasks: str,
    include_path: tuple[Path, ...],
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
    output: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Run tasks of lm-eval at several alphas; needs the extra `eval`."""
    import json

    from mav.pipeline.harness.installed import require_lm_eval
    from mav.pipeline.reporting.tables import require_place

    require_lm_eval()
    options = HarnessOptions(
        head=head,
        tasks=tuple(task for task in map(str.strip, tasks.split(",")) if task),
        base_model=base_model,
        alphas=alphas,
        include_path=include_path,
        limit=limit,
        batch_size=batch_size,
        num_fewshot=num_fewshot,
        loading=loading,
    )
    if output is not None:
        require_place(output, "output")

    from mav.pipeline.harness.report import table
    from mav.pipeline.harness.run import run_harness
    from mav.pipeline.runtime.durable_files import write_file

    report = run_harness(options)
    plain = report.to_json()
    if output is not None:
        write_file(output, (json.dumps(plain, indent=1) + "\n").encode())
    print_result(as_json, plain, table(report))
