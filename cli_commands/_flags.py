"""Names of options in messages: fields in the pipeline, flags at the command line."""

import re
from typing import Final

import click

_SUBJECT: Final = re.compile(r"^(\s*- )?([a-z][a-z0-9_]*)(?=: )", re.MULTILINE)
_NAMED: Final = re.compile(r"`([a-z][a-z0-9_]*)(?:=(True|False))?`")


def with_flags(ctx: click.Context, message: str) -> str:
    """Name the options of a message by the flags of the command that is running.

    A line may begin with a field and a colon, also as an item of a list. Elsewhere a field is in
    backticks, a switch also with its value: `resume`, `gguf_cache=False`. What is not an option of
    the command stays as it is.

    Args:
        ctx: Of the command.
        message: The message, which names options as Python does.
    """
    options = [param for param in ctx.command.params if isinstance(param, click.Option)]
    params = {param.opts[0].removeprefix("--").replace("-", "_"): param for param in options}
    params |= {str(param.name): param for param in options}

    def of_subject(found: re.Match[str]) -> str:
        param = params.get(found[2])
        return found[0] if param is None else f"{found[1] or ''}{param.opts[0]}"

    def of_named(found: re.Match[str]) -> str:
        param = params.get(found[1])
        if param is None:
            return found[0]
        turned_off = found[2] == "False" and param.secondary_opts
        return param.secondary_opts[0] if turned_off else param.opts[0]

    return _NAMED.sub(of_named, _SUBJECT.sub(of_subject, message))
