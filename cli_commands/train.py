"""`mav train`: train a head from a cache alone."""

from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from mav.cli_commands._errors import command, print_result
from mav.cli_commands._options import JSON, Number, OneOnly

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
"""
)
@click.option("--cache", cls=OneOnly, required=True, help="Cache to train from: folder or URL.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), required=True, help="Where heads are written."
)
@click.option("--eval-cache", cls=OneOnly, help="Another cache to evaluate on.")
@click.option("--eval-fraction", type=Number(), default=0.05, help="Share of prompts held out.")
@click.option(
    "--expansion-size",
    type=int,
    help="Width of the head's widest layer; published: 16384.  [default: by the base's size]",
)
@click.option("--dropout", type=Number(), default=0.1, help="Dropout after the fusion layer.")
@click.option(
    "--objective",
    type=click.Choice(["dpo", "mav"]),
    default="dpo",
    help="dpo is anchored to the base's own margin; mav is the published objective.",
)
@click.option("--beta", type=Number(), default=0.1, help="Inverse temperature of the objective.")
@click.option("--lambda-l2", type=Number(), default=0.001, help="Penalty on alignment vectors.")
@click.option("--learning-rate", type=Number(), default=1e-4, help="Peak learning rate.")
@click.option("--weight-decay", type=Number(), default=0.01, help="AdamW's weight decay.")
@click.option("--max-grad-norm", type=Number(), default=1.0, help="Gradients are clipped to this.")
@click.option("--num-epochs", default=1, help="Passes over the cache.")
@click.option("--batch-size", type=int, help="Pairs in a micro-batch.  [default: 16]")
@click.option(
    "--batch-tokens", type=int, help="Most response tokens in a micro-batch, not --batch-size."
)
@click.option("--grad-accum", default=1, help="Micro-batches of each process in a step.")
@click.option("--warmup-steps", type=int, help="Linear warm-up.  [default: a tenth, at most 100]")
@click.option(
    "--eval-steps", type=int, help="Steps between evaluations.  [default: a quarter epoch]"
)
@click.option(
    "--early-stopping",
    type=int,
    metavar="N",
    help="Stop after N evaluations without a better held-out loss.",
)
@click.option(
    "--bf16",
    type=click.Choice(["auto", "on", "off"]),
    is_flag=False,
    flag_value="on",
    default="auto",
    callback=_bf16,
    help="Compute in bfloat16; auto is where the device has it natively. Weights are float32.",
)
@click.option(
    "--no-bf16",
    is_flag=True,
    expose_value=False,
    callback=_turn_off_bf16,
    help="The same as --bf16 off.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["adamw", "adamw-8bit"]),
    default="adamw",
    help="adamw-8bit keeps its moments in a byte each; needs torchao.",
)
@click.option("--shard", is_flag=True, help="Cut the head into shards, one per process (FSDP2).")
@click.option(
    "--report-to",
    type=click.Choice(["tensorboard", "wandb", "trackio", "none"]),
    default="tensorboard",
    help="Tracker beside metrics.jsonl.",
)
@click.option("--workers", default=2, help="Threads that read the cache.")
@click.option("--seed", default=0, help="Of initialisation, order and dropout.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output-dir, if there is one.")
@JSON
def train_command(*, bf16: str, as_json: bool, **options: Any) -> None:
    """Train an alignment head from a cache alone; the base model is not needed."""
    from mav.pipeline.training.options import TrainOptions
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
