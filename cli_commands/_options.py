"""What several commands parse alike: types of values, and options."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import click

from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.runtime.choices import SpreadName
from mav.pipeline.runtime.options import option_of
from mav.pipeline.serving.options import ServeOptions


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


def fields_of(kind: type, *names: str) -> Callable[[Any], Any]:
    """Return one decorator for the options that fields of a dataclass describe, in this order."""
    return options(*(field_of(kind, name) for name in names))


def field_of(kind: type, name: str, **more: Any) -> Callable[[Any], Any]:
    """Return the option that a field of a dataclass describes.

    Args:
        kind: The dataclass.
        name: Name of the field.
        **more: Arguments of `click.option` that come before what follows from the field.
    """
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    rule = option_of(field)
    assert rule is not None, f"{name} is not an option"
    about = f"{rule.help}  [default: {rule.default_text}]" if rule.default_text else rule.help
    settings: dict[str, Any] = {"help": about, "metavar": rule.metavar}
    if rule.choices:
        settings["type"] = click.Choice(rule.choices)
    elif rule.whole or rule.number:
        settings["type"] = int if rule.whole else Number()
    match field.default:
        case bool():
            settings["is_flag"] = True
        case tuple():
            settings["multiple"] = True
        case dataclasses.MISSING:
            settings["required"] = True
        case None:
            pass
        case default:
            settings["default"] = default
    return click.option(f"--{name.replace('_', '-')}", **(settings | more))


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, …")
DTYPE = field_of(ServeOptions, "dtype")
DEVICE_MAP = click.option(
    "--device-map",
    type=click.Choice(get_args(SpreadName)),
    help="Spread the base over several devices, in place of --device.",
)
PLACEMENT = options(
    DTYPE,
    DEVICE,
    DEVICE_MAP,
    field_of(ExtractOptions, "quantize"),
)
GGUF_CACHE = click.option(
    "--gguf-cache/--no-gguf-cache",
    default=True,
    help="Convert a GGUF base to safetensors once, in MAV_CACHE_HOME, and load that.",
)
BASE = options(
    field_of(ExtractOptions, "gguf_file"), GGUF_CACHE, field_of(ExtractOptions, "revision")
)
