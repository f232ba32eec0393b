"""`mav train`: train a head from a cache alone."""

from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, OneOnly, field_of, fields_of
from mav.pipeline.training.options import TrainOptions

_NO_BF16: Final = "mav.no_bf16"


def _turn_off_bf16(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    # Callbacks run in the order in which options are given, so that the last one counts.
    if value and "bf16" in ctx.params:
        ctx.params["bf16"] = "off"
    ctx.meta[_NO_BF16] = value


def _bf16(ctx: click.Context, param: click.Parameter, value: str) -> str:
    assert param.name is not None
    if ctx.get_parameter_source(param.name) is ParameterSource.DEFAULT and ctx.meta.get(_NO_BF16):
        return "off"
    return value


@command(
    """
  mav train --cache llama.cache --output-dir runs/head
  mav train --cache llama.cache --output-dir runs/head --resume
  mav train --cache llama.cache --output-dir runs/small --head-type unembedding --rank 256
"""
)
@field_of(TrainOptions, "cache", cls=OneOnly)
@field_of(TrainOptions, "output_dir", type=click.Path(path_type=Path))
@field_of(TrainOptions, "eval_cache", cls=OneOnly)
@fields_of(
    TrainOptions,
    *("eval_fraction", "head_type", "expansion_size", "rank", "dropout", "objective", "beta"),
    *(
        "label_smoothing",
        "simpo_gamma",
        "credit_discount",
        "ld_alpha",
        "lambda_l2",
        "lambda_kl",
        "lambda_sft",
    ),
    *("learning_rate", "weight_decay", "max_grad_norm", "num_epochs", "batch_size"),
    *(
        "batch_tokens",
        "grad_accum",
        "warmup_steps",
        "ema",
        "eval_steps",
        "keep_by",
        "early_stopping",
    ),
)
@field_of(
    TrainOptions,
    "bf16",
    type=click.Choice(["auto", "on", "off"]),
    is_flag=False,
    flag_value="on",
    callback=_bf16,
)
@click.option(
    "--no-bf16",
    is_flag=True,
    expose_value=False,
    callback=_turn_off_bf16,
    help="The same as --bf16 off.",
)
@fields_of(
    TrainOptions,
    *("target_kl", "optimizer", "shard", "report_to", "project", "run_name"),
    *("workers", "seed", "resume"),
)
@JSON
def train_command(*, bf16: str, as_json: bool, **options: Any) -> None:
    """Train an alignment head from a cache alone; the base model is not needed."""
    from mav.pipeline.training.train import train

    wanted: Any = "auto" if bf16 == "auto" else bf16 == "on"
    report = train(TrainOptions(bf16=wanted, **options))
    best = f", best at step {report.best_step}" if report.best_step is not None else ""
    print_result(
        as_json,
        report.to_json(),
        f"{report.output_dir}: {report.steps:,} steps{best}. Heads: {report.output_dir / 'best'}, "
        f"{report.output_dir / 'last'}",
    )
