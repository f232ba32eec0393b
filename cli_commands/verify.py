"""`mav verify`: check that a cache is whole, and mend it."""

from typing import Any

import click

from mav.cli_commands._errors import command, print_result
from mav.cli_commands._options import DEVICE, DEVICE_MAP, GGUF_CACHE, JSON


@command(
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
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="Where the data sets are now, each in turn.  [default: where they were]",
)
@click.option(
    "--repair", is_flag=True, help="Mark what is damaged, so that mav extract writes it again."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    help="Element type the base computes in; auto is what the cache was computed in.",
)
@DEVICE
@DEVICE_MAP
@GGUF_CACHE
@JSON
def verify_command(
    *,
    cache: str,
    full: bool,
    against_base: int | None,
    base_model: str | None,
    datasets: tuple[str, ...],
    repair: bool,
    dtype: Any,
    device: str,
    device_map: str | None,
    gguf_cache: bool,
    as_json: bool,
) -> None:
    """Check that a cache is whole; exit code 1 if it is not."""
    from mav.pipeline.verification.verify import screen, verify

    found = verify(
        cache,
        full=full,
        pairs=against_base,
        base_model=base_model,
        datasets=datasets,
        repair=repair,
        dtype=dtype,
        device=device,
        device_map=device_map,
        gguf_cache=gguf_cache,
    )
    print_result(as_json, found.to_json(), screen(found))
    if not found.sound:
        raise SystemExit(1)
