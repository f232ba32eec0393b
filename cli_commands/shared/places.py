"""Files and folders that a shell completes."""

from typing import Any

import click
from click.shell_completion import CompletionItem

_NAMES = {
    *("base_model", "bases", "cache", "data", "datasets", "demo_switching", "eval_cache"),
    *("gguf_file", "head", "judge_prompt", "others", "output", "path", "prompts", "refusals"),
    *("reward_model", "samples"),
}
"""Of parameters that take an id or an address as well, so that they are plain text."""


class _Place(click.types.StringParamType):
    """Text that often names a file or a folder."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Have the shell complete files, behind `NAME=` too."""
        return [CompletionItem(incomplete.rpartition("=")[2], type="file")]


def complete_files(made: Any) -> None:
    """Have a shell complete files where the parameters of a command may name one.

    Args:
        made: The command.
    """
    for parameter in made.params:
        if parameter.name in _NAMES and isinstance(parameter.type, click.types.StringParamType):
            parameter.type = _Place()
