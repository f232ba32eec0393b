"""The command line: parse, call, print. All work is in `pipeline`, imported inside the commands."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


class Number(click.ParamType[float]):
    """A finite number; click's own float takes nan and inf."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number or fail with a usage error."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"got {value!r}, expected a finite number such as 0.5", param, ctx)
        return number


class Numbers(click.ParamType[tuple[float, ...]]):
    """Finite numbers separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers or fail with a usage error."""
        if isinstance(value, tuple):
            return value
        return tuple(Number().convert(part, param, ctx) for part in str(value).split(","))


class _ReportsErrors(click.Command):
    """A command that turns the errors users can cause into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. mav extract goes on where it was when run again, mav train with "
                "--resume.",
                err=True,
            )
            ctx.exit(130)
        except BrokenPipeError:
            raise  # click ends quietly when its reader has gone
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise _Failure(
                f"{error.filename or 'output'}: {error.strerror or error}"
                + (
                    ". The disk is full; free some space and run the same command again, what is "
                    "finished is kept."
                    if full
                    else ""
                ),
                1,
            ) from error
        except Exception as error:
            from cache_schema.errors import MAVError

            if isinstance(error, MAVError):
                raise _Failure(str(error), error.exit_code) from error
            raise


class _Failure(click.ClickException):
    """A message and the code to exit with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print(as_json: bool, value: dict[str, Any], text: str) -> None:
    # Of processes launched together, one speaks.
    if os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps(value, indent=1) if as_json else text)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    def decorate(function: Callable[..., None]) -> click.Command:
        name = function.__name__.removesuffix("_command")
        return main.command(
            name, cls=_ReportsErrors, epilog="\b\nExample:\n" + example.strip("\n")
        )(function)

    return decorate


_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, …")
_DTYPE = click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    help="Element type the base computes in.",
)
_BASE = _options(
    click.option("--gguf-file", help="GGUF file inside the base's folder or repository."),
    click.option("--revision", help="Branch, tag or commit of the base on the hub."),
)


@click.group(context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(package_name="mav", prog_name="mav")
def main() -> None:
    """Modular Alignment Vectors: align a frozen language model at test time.

    Extract a cache from a base model once, train a head from the cache alone, then decode with
    z_final = z_base + alpha * a, alpha chosen at every call.
    """


@_command(
    """
  mav extract --base-model meta-llama/Llama-2-7b-hf --dataset Anthropic/hh-rlhf \\
      --data-dir harmless-base --output llama.cache
"""
)
@click.option("--base-model", required=True, help="Hub id, folder, or .gguf file.")
@_BASE
@click.option("--dataset", required=True, help="File, saved data set, or hub id.")
@click.option("--data-dir", help="Subset folder of a hub data set, such as harmless-base.")
@click.option("--split", default="train", help="Split of a hub or saved data set.")
@click.option("--output", required=True, help="Cache to write: a folder, or a URL such as s3://….")
@click.option(
    "--layer-selection",
    default="auto",
    help="auto (first, middle, last), uniform, or indices like 1,15,30; 0 is the embeddings.",
)
@click.option("--num-layers", default=3, help="Layers that uniform takes.")
@click.option("--pooled-size", default=4096, help="Width each layer is pooled to.")
@click.option("--max-length", default=512, help="Most tokens of a prompt with one response.")
@click.option(
    "--logits",
    type=click.Choice(["factored", "dense", "topk"]),
    default="factored",
    help="How base logits are stored; factored is exact and smallest.",
)
@click.option("--top-k", default=64, help="Logits kept per token with --logits topk.")
@_DTYPE
@click.option(
    "--compression",
    type=click.Choice(["none", "zstd", "blosc"]),
    default="none",
    help="Lossless compression of what is stored; blosc is smallest.",
)
@click.option(
    "--storage-dtype",
    type=click.Choice(["computed", "int8", "fp8"]),
    default="computed",
    help="How states are stored: as computed, or lossy in one byte a value.",
)
@click.option("--limit", type=int, help="Read only the first N rows.")
@click.option(
    "--batch-tokens", type=int, help="Most tokens in a forward pass.  [default: by device]"
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing; tell bytes, free space and hours, from a short timed sample.",
)
@_DEVICE
@_JSON
def extract_command(
    *,
    dry_run: bool,
    dataset: str,
    data_dir: str | None,
    split: str,
    limit: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a frozen base once over preference pairs and write the cache.

    Interrupted, the same command goes on where it was; a complete cache is left as it is. Launched
    as several processes (accelerate launch, torchrun), they share the work.
    """
    from pipeline.extract import extract
    from pipeline.extract_options import ExtractOptions
    from pipeline.preferences import DataSource
    from pipeline.preflight import preflight, screen

    data = DataSource(id=dataset, data_dir=data_dir, split=split, limit=limit)
    asked = ExtractOptions(data=data, **options)
    if dry_run:
        expected = preflight(asked, say=_say)
        _print(as_json, expected.to_json(), screen(expected))
        return
    report = extract(asked, say=_say)
    found = report.to_json()
    rate = found["pairs_per_second"]
    speed = f" at {rate:.1f} pairs/s" if rate else ""
    _print(
        as_json,
        found,
        f"{options['output']}: {found['pairs']:,} pairs, {found['response_tokens']:,} response "
        f"tokens, {found['stored_bytes'] / 1e9:.2f} GB{speed}",
    )


@_command(
    """
  mav verify llama.cache
  mav verify llama.cache --against-base 20
  mav verify s3://bucket/llama.cache --fast --json
"""
)
@click.argument("cache")
@click.option(
    "--full/--fast",
    default=True,
    help="Read everything and compare all digests, or look at existence and sizes alone.",
)
@click.option(
    "--against-base", type=int, metavar="N", help="Also run N pairs through the live base again."
)
@click.option("--base-model", help="Where the base is now.  [default: where it was]")
@click.option("--dataset", help="Where the data set is now.  [default: where it was]")
@click.option(
    "--repair", is_flag=True, help="Mark what is damaged, so that mav extract writes it anew."
)
@_DEVICE
@_JSON
def verify_command(
    *,
    cache: str,
    full: bool,
    against_base: int | None,
    base_model: str | None,
    dataset: str | None,
    repair: bool,
    device: str,
    as_json: bool,
) -> None:
    """Check that a cache is whole; exit code 1 if it is not."""
    from pipeline.verification import run_verification, screen

    found = run_verification(
        cache,
        full=full,
        pairs=against_base,
        base_model=base_model,
        dataset=dataset,
        mend=repair,
        device=device,
        say=_say,
    )
    _print(as_json, found.to_json(), screen(found))
    if not found.sound:
        raise SystemExit(1)


@_command(
    """
  mav train --cache llama.cache --output-dir runs/head
  mav train --cache llama.cache --output-dir runs/head --resume
"""
)
@click.option("--cache", required=True, help="Cache to train from: folder or URL.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), required=True, help="Where heads are written."
)
@click.option("--eval-cache", help="Another cache to evaluate on.")
@click.option("--eval-fraction", type=Number(), default=0.05, help="Share of prompts held out.")
@click.option("--expansion-size", default=16384, help="Width of the head's widest layer.")
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
@click.option("--bf16/--no-bf16", default=True, help="Compute in bfloat16; weights are float32.")
@click.option(
    "--optimizer",
    type=click.Choice(["adamw", "adamw-8bit"]),
    default="adamw",
    help="adamw-8bit keeps its moments in a byte each; needs torchao.",
)
@click.option("--shard", is_flag=True, help="Cut the head into shards, one a process (FSDP2).")
@click.option(
    "--report-to",
    type=click.Choice(["tensorboard", "wandb", "trackio", "none"]),
    default="tensorboard",
    help="Tracker beside metrics.jsonl.",
)
@click.option("--workers", default=2, help="Threads that read the cache.")
@click.option("--seed", default=0, help="Of initialisation, order and dropout.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output-dir, if there is one.")
@_JSON
def train_command(*, as_json: bool, **options: Any) -> None:
    """Train an alignment head from a cache alone; the base model is not needed."""
    from pipeline.train import train
    from pipeline.train_options import TrainOptions

    report = train(TrainOptions(**options), say=_say)
    best = f", best at step {report.best_step}" if report.best_step is not None else ""
    _print(
        as_json,
        report.to_json(),
        f"{report.output_dir}: {report.steps:,} steps{best}. Heads: {report.output_dir / 'best'}, "
        f"{report.output_dir / 'last'}",
    )


@_command(
    """
  mav evaluate --head runs/head --cache llama.cache --alphas 0,0.5,1,2 --plot alphas.png
  mav evaluate --head runs/head --cache llama.cache --report report.html
"""
)
@click.option("--head", required=True, help="Folder or hub id of a head.")
@click.option("--cache", required=True, help="Cache to use: folder or URL.")
@click.option("--alphas", type=Numbers(), default="0,0.5,1,1.5,2", help="Strengths.")
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
@_DEVICE
@_JSON
def evaluate_command(
    *,
    head: str,
    cache: str,
    alphas: Sequence[float],
    which: Any,
    plot: Path | None,
    report_file: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure a head at several alphas on cached pairs; the base model is not needed."""
    from pipeline import html_report, report
    from pipeline.evaluate import evaluate

    if plot is not None:
        report.require_plot(plot)
    if report_file is not None:
        html_report.require_report(report_file)
    found = evaluate(head, cache, alphas, which=which, device=device)
    _print(as_json, found.to_json(), report.table(found))
    if plot is not None:
        report.plot(found, plot)
    if report_file is not None:
        html_report.write_report(found, report_file)


@_command(
    """
  mav inspect llama.cache
  mav inspect runs/head --json
"""
)
@click.argument("path")
@_JSON
def inspect_command(*, path: str, as_json: bool) -> None:
    """Show what a cache or a head is."""
    from pipeline.describe import describe, screen

    found = describe(path)
    _print(as_json, found, screen(found))


@_command(
    """
  mav generate --head runs/head --prompt "How do I say no politely?" --alphas 0,1,2
  mav generate --head runs/head --prompt "Hello" --alpha 1.5 --stream
"""
)
@click.option("--head", required=True, help="Folder or hub id of a head.")
@click.option("--base-model", help="Base to decode with.  [default: the one it was trained on]")
@_BASE
@click.option("--prompt", help="A message, or a transcript that ends in 'Assistant:'.")
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    help="File of prompts, one a line; or .jsonl with a field 'prompt'.",
)
@click.option("--alpha", type=Number(), help="Strength; 0 is the base itself.  [default: 1.0]")
@click.option("--alphas", type=Numbers(), help="Several strengths, in place of --alpha.")
@click.option("--max-new-tokens", default=128, help="Most tokens of an answer.")
@click.option("--temperature", type=Number(), default=0.0, help="0 is greedy.")
@click.option("--top-p", type=Number(), default=1.0, help="Nucleus to sample from.")
@click.option("--seed", type=int, help="Of the sampling.")
@click.option("--stream", is_flag=True, help="Print the answer while it is written.")
@_DTYPE
@_DEVICE
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object an answer, a line each."
)
def generate_command(
    *,
    head: str,
    base_model: str | None,
    gguf_file: str | None,
    revision: str | None,
    prompt: str | None,
    prompts_file: Path | None,
    alpha: float | None,
    alphas: Sequence[float] | None,
    stream: bool,
    dtype: str,
    device: str,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Decode with a base and a head together, one forward pass a token."""
    if (prompt is None) == (prompts_file is None):
        raise click.UsageError("give either --prompt or --prompts")
    if alpha is not None and alphas is not None:
        raise click.UsageError("give either --alpha or --alphas")
    if stream and as_json:
        raise click.UsageError("--stream prints text as it comes, so it does not go with --json")
    from pipeline.decoding import Decoding
    from pipeline.generate import MAVInference
    from pipeline.prompts import read_prompts
    from pipeline.stored import TORCH_DTYPES

    wanted = Decoding(**decoding)
    prompts = [prompt] if prompts_file is None else read_prompts(prompts_file)
    mav = MAVInference(
        head,
        base_model,
        gguf_file=gguf_file,
        revision=revision,
        dtype=TORCH_DTYPES[dtype],
        device=device,
        say=_say,
    )
    for text in prompts:
        assert text is not None
        for strength in alphas or (1.0 if alpha is None else alpha,):
            if not as_json and (len(prompts) > 1 or alphas):
                click.echo(f"--- alpha {strength:g}: {text.strip()}")
            if stream:
                for piece in mav.stream_response(text, strength, **decoding):
                    click.echo(piece, nl=False)
                    sys.stdout.flush()
                click.echo()
                continue
            answer = mav.generate(text, strength, wanted)
            click.echo(json.dumps(answer.to_json()) if as_json else answer.response)


@_command(
    """
  mav demo
"""
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    help="Where everything is written.",
)
@click.option("--base-model", help="Another base than the installed SmolLM2-135M-Instruct.")
def demo_command(*, output_dir: Path, base_model: str | None) -> None:
    """Extract, train, evaluate and decode on a shipped sample, in a few minutes on a CPU."""
    from pipeline.demo import run_demo

    run_demo(output_dir, base_model, say=click.echo)


if __name__ == "__main__":
    main()
