"""`mav verify`: check that a cache is intact, and repair it."""

from typing import Any

import click

from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import JSON, field_of, fields_of
from mav.pipeline.verification.options import VerifyOptions


@command(
    """
  mav verify llama.cache
  mav verify llama.cache --against-base 20
  mav verify s3://bucket/llama.cache --fast --json
"""
)
@click.argument("cache")
@fields_of(VerifyOptions, "full", "against_base", "base_model")
@field_of(VerifyOptions, "datasets", flag="--dataset")
@fields_of(VerifyOptions, "repair", "dtype", "device", "device_map", "gguf_cache")
@JSON
def verify_command(*, as_json: bool, **options: Any) -> None:
    """Check that a cache is intact; exit code 1 if it is not."""
    from mav.pipeline.verification.verify import screen, verify

    report = verify(VerifyOptions(**options))
    print_result(as_json, report.to_json(), screen(report))
    if not report.sound:
        raise SystemExit(1)
