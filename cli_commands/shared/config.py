"""Options of a command from a YAML file; those on the command line count before it."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

_NAME: Final = "config"


def config_option() -> click.Option:
    """Return --config, which every command takes."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_take,
        metavar="FILE",
        help="YAML file of options, by name; those given here count before it.",
    )


def _take(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make what a file says the defaults of the command.

    Raises:
        click.UsageError: It cannot be read, or names what is no option.
    """
    if path is None or ctx.resilient_parsing:
        return
    settings = _read(path)
    assert ctx.command.name is not None and ctx.parent is not None
    group = ctx.parent.command
    if isinstance(group, click.Group) and any(
        isinstance(value, Mapping) and name in group.commands for name, value in settings.items()
    ):
        # A file of several commands has a part for each.
        foreign = [name for name in settings if name not in group.commands]
        if foreign:
            raise click.UsageError(
                f"--config: {path}: got {foreign[0]!r} beside parts of commands, expected all "
                f"options in the part of their command",
                ctx,
            )
        settings = settings.get(ctx.command.name) or {}
    params = _names(ctx.command)
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = str(name).replace("-", "_")
        if key not in params or key == _NAME:
            near = difflib.get_close_matches(key, params, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(
                f"--config: {path}: mav {ctx.command.name} has no option {name!r}{meant}", ctx
            )
        assert params[key].name is not None
        found[params[key].name] = _value(params[key], value, f"{path}: {name}", ctx)
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _read(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise click.UsageError(f"--config: {path}: cannot be read: {told}") from error
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise click.UsageError(
            f"--config: {path}: got a {type(settings).__name__}, expected options by name, such as "
            f"learning_rate: 1e-4"
        )
    return settings


def _names(command: click.Command) -> dict[str, click.Parameter]:
    """Return the parameters of a command by all their names, without dashes."""
    found: dict[str, click.Parameter] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            for flag in param.opts:
                found[flag.lstrip("-").replace("-", "_")] = param
        if param.name is not None:
            found.setdefault(param.name, param)
    return found


def _value(param: click.Parameter, value: Any, place: str, ctx: click.Context) -> Any:
    """Return a value as the option takes it from the command line."""
    if isinstance(param, click.Option) and param.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"--config: {place}: got {value!r}, expected true or false", ctx)
        return value
    if param.multiple:
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, bool):
        return "on" if value else "off"  # as YAML reads these words
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return None if value is None else str(value)
