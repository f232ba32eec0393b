"""The help of every command, and of the list of them."""

import re
import shlex

import click
import pytest

from mav import cli
from mav.cli_commands.shared import sections
from tests.support.running.commands import done, mav

COMMANDS = sorted(cli.main.commands.items())
EVERY_COMMAND = pytest.mark.parametrize(
    "command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS]
)


def test_the_commands_are_those_of_the_readme() -> None:
    names = [name for name, _ in COMMANDS]
    asked = (
        "chat compare completion demo engine-args evaluate extract generate harness inspect merge "
        "pairs push sample serve train verify"
    )
    assert names == asked.split()


@pytest.mark.parametrize("args", [["--help"], *([name, "--help"] for name, _ in COMMANDS)])
def test_help_works(args: list[str]) -> None:
    assert done(*args).startswith("Usage: ")


def test_the_list_of_commands_says_what_each_does() -> None:
    text = " ".join(done("--help").split())
    for name, command in COMMANDS:
        assert f" {name} {command.get_short_help_str(200)}" in text


def test_every_option_of_a_command_with_many_has_a_heading() -> None:
    named = {name for names in sections.OPTIONS.values() for name in names.split()}
    known = {param.name for _, command in COMMANDS for param in command.params}
    own = {f"{name}.{param.name}" for name, command in COMMANDS for param in command.params}
    assert named <= known | own | {"help"}
    assert sections.OPTIONS.keys().isdisjoint({"Options"})
    for name, command in COMMANDS:
        first = [
            param.name
            for param in command.params
            if not {param.name, f"{name}.{param.name}"} & named
        ]
        assert len(first) <= 9, first


def test_help_shows_options_under_headings_and_each_once() -> None:
    text = done("train", "--help")
    assert text.index("\nHead:") < text.index("--rank") < text.index("\nObjective:")
    assert text.index("\nOptimisation:") < text.index("--seed") < text.index("\nBatches:")
    assert "\nHead:" not in done("push", "--help")
    for name, command in COMMANDS:
        lines = done(str(name), "--help").splitlines()
        for param in command.params:
            if isinstance(param, click.Option):
                shown = [line for line in lines if re.match(rf"  {param.opts[0]}( |$|,)", line)]
                assert len(shown) == 1, param.name


@EVERY_COMMAND
def test_every_option_has_help_that_is_shown(command: click.Command) -> None:
    shown = " ".join(done(str(command.name), "--help").split())
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.opts[0] in shown
            assert " ".join(option.help.replace("\b", "").split())[:40] in shown


@EVERY_COMMAND
def test_every_command_has_examples_that_parse(command: click.Command) -> None:
    text = done(str(command.name), "--help")
    assert "Example:" in text
    lines = text.split("Example:")[1].replace("\\\n", " ").strip().splitlines()
    assert lines
    for example in lines:
        program, name, *args = shlex.split(example)
        assert (program, name) == ("mav", command.name)
        # Parses, converts and requires, but runs nothing.
        command.make_context(name, args)


@EVERY_COMMAND
def test_unknown_options_are_usage_errors(command: click.Command) -> None:
    result = mav(command.name, "--no-such-option")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_version() -> None:
    assert done("--version").startswith("mav, version ")
