"""`mav compare`: measure what heads and other systems write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from mav.cli_commands.shared.answering import BASE_MODEL, LOADING, SAMPLING
from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, Numbers, OneOnly, field_of, fields_of, made_of
from mav.pipeline.comparison.options import CompareOptions, Export, JudgeOptions
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions


@command(
    """
  mav compare --head runs/head --prompts Anthropic/hh-rlhf,split=test --limit 100 \\
    --reward-model Ray2333/gpt2-large-helpful-reward_model --output runs/compare
  mav compare --head first=runs/a --head second=runs/b --prompts prompts.jsonl --output runs/two
  mav compare --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0.5 \\
    --prompts prompts.jsonl --output runs/both
  mav compare --with ours=a.jsonl --with theirs=b.json --prompts alpaca_eval.json \\
    --limit 805 --reward-model runs/reward --output runs/files
"""
)
@field_of(CompareOptions, "head")
@BASE_MODEL
@LOADING
@field_of(CompareOptions, "prompts", cls=OneOnly)
@field_of(CompareOptions, "limit")
@click.option(
    "--alphas",
    cls=OneOnly,
    type=Numbers(),
    help="Strengths each head answers at; 0 is the base.  [default: 0,0.5,1,2; 0 with --alpha]",
)
@field_of(CompareOptions, "alpha")
@fields_of(CompareOptions, "samples", "batch_size")
@SAMPLING
@field_of(GenerationOptions, "stop")
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="NAME=FILE",
    help="Answers of another system; may be repeated.",
)
@field_of(CompareOptions, "reward_model")
@field_of(JudgeOptions, "judge_url", cls=OneOnly, required=False)
@field_of(JudgeOptions, "judge_model", cls=OneOnly, required=False)
@fields_of(
    JudgeOptions,
    *("judge_prompt", "judge_key", "judge_temperature", "judge_concurrency", "judge_max_calls"),
)
@fields_of(CompareOptions, "reference", "refusals")
@field_of(CompareOptions, "export", type=click.Choice(get_args(Export)))
@field_of(CompareOptions, "output", cls=OneOnly, type=click.Path(path_type=Path))
@JSON
def compare_command(
    *,
    prompts: str,
    output: Path,
    head: Sequence[str],
    alphas: Sequence[float] | None,
    alpha: Sequence[str],
    limit: int,
    samples: int,
    batch_size: int,
    others: Sequence[str],
    reward_model: Sequence[str],
    reference: str | None,
    refusals: str | None,
    export: Sequence[Any],
    base_model: str | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Answer prompts at several strengths, and measure the answers beside those of other systems.

    The measures are reward, wins against a reference, KL to the base over the answers' own tokens,
    length, repetition, diversity, refusals and perplexity. The same command resumes an interrupted
    run; it writes answers, summary.json and page.html under --output.
    """
    from mav.pipeline.comparison.run import compare
    from mav.pipeline.reporting.comparison_page import PAGE, write_comparison
    from mav.pipeline.reporting.comparison_table import comparison_table

    options = CompareOptions(
        prompts=prompts,
        output=output,
        head=tuple(head),
        alphas=None if alphas is None else tuple(alphas),
        alpha=tuple(alpha),
        limit=limit,
        samples=samples,
        batch_size=batch_size,
        decoding=made_of(GenerationOptions, more),
        others=tuple(others),
        reference=reference,
        reward_model=tuple(reward_model),
        judge=_judge(more),
        refusals=None if refusals is None else Path(refusals),
        export=tuple(export),
    )
    loading = asdict(made_of(InferenceOptions, more))
    comparison = compare(options, base=base_model, **loading)
    write_comparison(comparison, output / PAGE)
    print_result(
        as_json,
        comparison.summary.to_json(),
        f"{comparison_table(comparison.summary)}\n\nPage: {output / PAGE}",
    )


def _judge(values: Mapping[str, Any]) -> JudgeOptions | None:
    """Return the judge's options; None without a judge."""
    context = click.get_current_context()
    named = {field.name: values[field.name] for field in fields(JudgeOptions)}
    given = [
        name for name in named if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if not given:
        return None
    missing = [name for name in ("judge_url", "judge_model") if named[name] is None]
    if missing:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise click.UsageError(f"a judge needs --judge-url and --judge-model; {flags} is missing")
    prompt = named.pop("judge_prompt")
    return JudgeOptions(**named, judge_prompt=None if prompt is None else Path(prompt))
