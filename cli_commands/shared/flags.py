"""Option names in messages: fields in the pipeline become flags on the command line."""

import re
from typing import Final

import click

_SUBJECT: Final = re.compile(r"^(\s*- )?([a-z][a-z0-9_]*)(?=: )", re.MULTILINE)
_NAMED: Final = re.compile(r"`([a-z][a-z0-9_]*)(?:=(True|False))?`")


def with_flags(ctx: click.Context, message: str) -> str:
    """Replace the field names in a message by the flags of the running command.

    A field stands before a colon at the start of a line or list item. Elsewhere it is in backticks,
    a switch possibly with its value: `resume`, `gguf_cache=False`. Names that are not options of
    the command are left unchanged.

    Args:
        ctx: Context of the command.
        message: The message, with Python's names.
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
