"""Types and options that several commands share."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from mav.pipeline.runtime.load_options import BaseOptions
from mav.pipeline.runtime.named_values import named_parts
from mav.pipeline.runtime.options import Option, option_of

T = TypeVar("T")


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


class NumberOr(Number):
    """A finite number, or one of some words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number or the word, or fail with a usage error."""
        if value in self._words:
            return value
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}, or {' or '.join(self._words)}", param, ctx)


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


class NamedNumbers(click.ParamType[dict[str, float]]):
    """Finite numbers with names, separated by commas."""

    name = "named numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        """Return the numbers by name or fail with a usage error."""
        if isinstance(value, dict):
            return value
        try:
            parts = named_parts(value)
        except ValueError:
            self.fail(f"got {value!r}, expected such as helpful=1,harmless=0.5", param, ctx)
        return {name: Number().convert(part, param, ctx) for name, part in parts.items()}


class Columns(click.ParamType[dict[str, str]]):
    """Names of columns, by what they are here."""

    name = "columns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Return the names or fail with a usage error."""
        from mav.pipeline.preferences.columns import parse_columns

        if isinstance(value, dict):
            return value
        try:
            return parse_columns(str(value))
        except ValueError as error:
            self.fail(f"got {value!r}, {error}", param, ctx)


class Strength(click.ParamType[Any]):
    """A strength, or a schedule of strengths; of several heads these by name."""

    name = "alpha"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the strength or fail with a usage error."""
        from mav.cache_schema.errors import UsageError
        from mav.pipeline.decoding.steering.strengths import strength_of_text

        if not isinstance(value, str):
            return value
        try:
            return strength_of_text(value)
        except UsageError as error:
            self.fail(str(error).removeprefix("alpha: "), param, ctx)


class OneOnly(click.Option):
    """An option that must not be repeated.

    For most options the last value counts, so that a script's choice can be overridden. A second
    cache, head, prompt or strength means that both are wanted; the first would be lost silently.
    """


def made_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from the options of a command that are its fields."""
    assert dataclasses.is_dataclass(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


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


def field_of(
    kind: type, name: str, *, flag: str | None = None, **more: Any
) -> Callable[[Any], Any]:
    """Return the option that a field of a dataclass describes.

    Args:
        kind: The dataclass.
        name: Name of the field.
        flag: Name of its flag, if not that of the field.
        **more: Arguments of `click.option` that override those from the field.
    """
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    rule = option_of(field)
    assert rule is not None, f"{name} is not an option"
    about = f"{rule.help}  [default: {rule.default_text}]" if rule.default_text else rule.help
    flag = flag or "--" + name.replace("_", "-")
    settings: dict[str, Any] = {"help": about, "metavar": rule.metavar, **_kind_of(rule)}
    match field.default:
        case True:
            flag += f"/--{rule.off}" if rule.off else f"/--no-{flag.removeprefix('--')}"
            settings["default"] = True
        case False:
            settings["is_flag"] = True
        case tuple() if rule.numbers:
            settings["default"] = ",".join(f"{number:g}" for number in field.default)
        case tuple():
            settings["multiple"] = True
        case dataclasses.MISSING:
            settings["required"] = True
        case None:
            pass
        case default:
            settings["default"] = default
    return click.option(flag, name, **(settings | more))


def _kind_of(rule: Option) -> dict[str, Any]:
    """Return the type of an option's values, as `click.option` takes it."""
    if rule.choices:
        return {"type": click.Choice(rule.choices)}
    if rule.numbers:
        return {"type": Numbers()}
    if rule.words:
        return {"type": NumberOr(rule.words)}
    if rule.number or rule.whole:
        return {"type": int if rule.whole else Number()}
    return {}


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
PLACEMENT = fields_of(BaseOptions, "dtype", "device", "device_map", "quantize")
BASE = fields_of(BaseOptions, "gguf_file", "gguf_cache", "revision", "merge_adapter")
