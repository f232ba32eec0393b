"""`mav extract`: run a base over preference pairs and write the cache."""

from typing import Any

import click

from mav.cli_commands._errors import command, print_result
from mav.cli_commands._options import BASE, JSON, PLACEMENT


@command(
    """
  mav extract --base-model meta-llama/Llama-2-7b-hf --dataset Anthropic/hh-rlhf \\
      --data-dir harmless-base --output llama.cache
"""
)
@click.option("--base-model", required=True, help="Hub id, folder, or .gguf file.")
@BASE
@click.option(
    "--dataset",
    "datasets",
    required=True,
    multiple=True,
    help="File, folder, or hub id; may be given again. After commas it takes data_dir=, split=, "
    "limit=, weight= and held_out= of its own.",
)
@click.option("--data-dir", help="Subset folder of data sets, such as harmless-base.")
@click.option("--split", default="train", help="Split of data sets; of a test split none trains.")
@click.option("--output", required=True, help="Cache to write: a folder, or a URL such as s3://….")
@click.option(
    "--layer-selection",
    default="auto",
    help="auto (first, middle, last), uniform, or indices like 1,15,30; 0 is the embeddings.",
)
@click.option("--num-layers", default=3, help="Layers that uniform takes.")
@click.option(
    "--pooled-size",
    type=int,
    help="Width each layer is pooled to; published: 4096.  [default: the base's, at most 4096]",
)
@click.option("--max-length", default=512, help="Most tokens of a prompt with one response.")
@click.option(
    "--prompt-form",
    type=click.Choice(["hh", "chat"]),
    default="hh",
    help="HH-RLHF's transcript, or the base's chat template.",
)
@click.option(
    "--template-date",
    metavar="DATE",
    help="Date given to a chat template that asks for it: YYYY-MM-DD or today.  "
    "[default: today, and when going on the day it began]",
)
@click.option(
    "--logits",
    type=click.Choice(["factored", "dense", "topk"]),
    default="factored",
    help="How base logits are stored; factored is exact and smallest.",
)
@click.option("--top-k", default=64, help="Logits kept per token with --logits topk.")
@click.option(
    "--compression",
    type=click.Choice(["none", "zstd", "blosc"]),
    default="none",
    help="Lossless compression of what is stored; blosc is smallest.",
)
@click.option(
    "--storage-dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "int8", "fp8"]),
    default="bfloat16",
    help="How states are stored, whatever --dtype is; int8 and fp8 are lossy, in a byte per value.",
)
@click.option("--limit", type=int, help="Read only the first N rows of each data set.")
@click.option(
    "--batch-tokens", type=int, help="Most tokens in a forward pass.  [default: by free memory]"
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing; show bytes, free space and hours, from a short timed sample.",
)
@PLACEMENT
@click.option(
    "--allow-dtype-mismatch",
    is_flag=True,
    help="Go on with a cache that was begun in another --dtype.",
)
@JSON
def extract_command(
    *,
    dry_run: bool,
    datasets: tuple[str, ...],
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
    from mav.pipeline.extraction.dry_run import dry_run as measure
    from mav.pipeline.extraction.dry_run import screen
    from mav.pipeline.extraction.extract import extract
    from mav.pipeline.extraction.options import ExtractOptions
    from mav.pipeline.preferences.sources import DataSource, parse_source

    defaults = DataSource(id="", data_dir=data_dir, split=split, limit=limit)
    data = tuple(parse_source(dataset, defaults) for dataset in datasets)
    asked = ExtractOptions(data=data, **options)
    if dry_run:
        expected = measure(asked)
        print_result(as_json, expected.to_json(), screen(expected))
        return
    report = extract(asked)
    found = report.to_json()
    rate = found["pairs_per_second"]
    speed = f" at {rate:.1f} pairs/s" if rate else ""
    print_result(
        as_json,
        found,
        f"{options['output']}: {found['pairs']:,} pairs, {found['response_tokens']:,} response "
        f"tokens, {found['stored_bytes'] / 1e9:.2f} GB{speed}",
    )
