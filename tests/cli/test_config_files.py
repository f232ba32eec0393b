"""Options from a YAML file, for every command; the command line counts before it."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result

from mav import cli


def shown(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command was called with, instead of running it."""
    got: dict[str, Any] = {}
    made = cli.main.commands[command]
    monkeypatch.setattr(made, "callback", lambda **values: got.update(values))
    return got


def run(folder: Path, text: str, *args: str) -> Result:
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    command, *rest = args
    return CliRunner().invoke(cli.main, [command, "--config", str(path), *rest])


TRAIN = """
cache: hh.cache
output-dir: runs/head
learning_rate: 1e-3
lambda-kl: 0.5
resume: true
bf16: off
eval_fraction: 0.2
"""


def test_a_file_gives_what_the_line_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = shown("train", monkeypatch)
    result = run(tmp_path, TRAIN, "train", "--eval-fraction", "0.1")
    assert result.exit_code == 0, result.output
    assert (got["cache"], got["output_dir"]) == ("hh.cache", Path("runs/head"))
    assert (got["learning_rate"], got["lambda_kl"], got["resume"]) == (1e-3, 0.5, True)
    assert (got["bf16"], got["eval_fraction"], got["seed"]) == ("off", 0.1, 0)


def test_lists_names_and_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = shown("extract", monkeypatch)
    text = """
base_model: some/base
dataset: [a.jsonl, b.jsonl]
output: x.cache
columns: {prompt: question, chosen: good}
gguf-cache: false
layer_selection: 1,2,4
"""
    assert run(tmp_path, text, "extract").exit_code == 0
    assert got["data"] == ("a.jsonl", "b.jsonl")
    assert got["columns"] == {"prompt": "question", "chosen": "good"}
    assert (got["gguf_cache"], got["layer_selection"]) == (False, "1,2,4")
    got = shown("evaluate", monkeypatch)
    assert run(tmp_path, "head: h\ncache: c\nalphas: [0, 0.5]", "evaluate").exit_code == 0
    assert (got["head"], got["alphas"]) == (("h",), (0.0, 0.5))


def test_one_file_may_have_a_part_for_each_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "train: {cache: hh.cache, output_dir: r}\nevaluate: {head: r, cache: hh.cache}\n"
    got = shown("train", monkeypatch)
    assert run(tmp_path, text, "train").exit_code == 0
    assert got["cache"] == "hh.cache"
    got = shown("verify", monkeypatch)
    assert run(tmp_path, text, "verify", "some.cache").exit_code == 0
    assert got["cache"] == "some.cache"


def test_an_argument_may_stand_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = shown("verify", monkeypatch)
    assert run(tmp_path, "cache: some.cache\nfull: false", "verify").exit_code == 0
    assert (got["cache"], got["full"]) == ("some.cache", False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("learning_rat: 1", "mav train has no option 'learning_rat'; did you mean learning_rate?"),
        ("config: x.yaml", "mav train has no option 'config'"),
        ("[1, 2]", "got a list, expected options by name, such as learning_rate: 1e-4"),
        ("a: [", "cannot be read: while parsing"),
        ("resume: maybe", "resume: got 'maybe', expected true or false"),
        ("train: {cache: c}\nseed: 1", "got 'seed' beside parts of commands"),
        ("learning_rate: fast", "got 'fast', expected a finite number"),
        ("seed: 1.5", "Invalid value for '--seed'"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    result = run(tmp_path, text, "train", "--cache", "c", "--output-dir", "o")
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["train", "--config", str(tmp_path / "no.yaml")])
    assert result.exit_code == 2 and "No such file" in result.output


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_takes_one(name: str) -> None:
    flags = [flag for param in cli.main.commands[name].params for flag in param.opts]
    assert flags.count("--config") == 1


def test_what_a_file_gives_counts_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[ParameterSource | None] = []

    @click.pass_context
    def note(ctx: click.Context, /, **_: object) -> None:
        sources.append(ctx.get_parameter_source("temperature"))

    monkeypatch.setattr(cli.main.commands["generate"], "callback", note)
    assert run(tmp_path, "head: h\nprompt: x\ntemperature: 0.5", "generate").exit_code == 0
    assert sources == [ParameterSource.DEFAULT_MAP]
