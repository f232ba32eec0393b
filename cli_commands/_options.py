"""What several commands parse alike: types of values, and options."""

import math
from collections.abc import Callable
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


class Strength(click.ParamType[Any]):
    """A strength, or a schedule of strengths."""

    name = "alpha"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the schedule or fail with a usage error."""
        from mav.cache_schema.errors import UsageError
        from mav.pipeline.decoding.alpha import AlphaSchedule

        if not isinstance(value, str):
            return value
        try:
            return AlphaSchedule.parse(value)
        except UsageError as error:
            self.fail(str(error).removeprefix("alpha: "), param, ctx)


class OneOnly(click.Option):
    """An option that is refused when given again.

    The last value of an option counts, so that a script's choice can be overridden. Of caches,
    heads, prompts and strengths a second one asks for both, and the first would be lost unseen.
    """


def options(*several: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for several options."""

    def decorate(function: Any) -> Any:
        for option in reversed(several):
            function = option(function)
        return function

    return decorate


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, …")
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    help="Element type to compute in; auto is what the device multiplies natively.",
)
DEVICE_MAP = click.option(
    "--device-map",
    type=click.Choice(["auto", "balanced", "balanced_low_0", "sequential"]),
    help="Spread the base over several devices, in place of --device.",
)
PLACEMENT = options(
    DTYPE,
    DEVICE,
    DEVICE_MAP,
    click.option(
        "--quantize",
        type=click.Choice(["nf4", "int8"]),
        help="Quantize the base's weights when it is loaded; needs bitsandbytes.",
    ),
)
GGUF_CACHE = click.option(
    "--gguf-cache/--no-gguf-cache",
    default=True,
    help="Convert a GGUF base to safetensors once, in MAV_CACHE_HOME, and load that.",
)
BASE = options(
    click.option("--gguf-file", help="GGUF file inside the base's folder or repository."),
    GGUF_CACHE,
    click.option("--revision", help="Branch, tag or commit of the base on the hub."),
)
