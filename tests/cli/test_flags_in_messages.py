"""Errors and warnings name options as fields in Python, and as flags at the command line."""

import logging
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mav.cache_schema.errors import UsageError
from mav.cli_commands.shared.errors import command
from mav.cli_commands.shared.flags import with_flags

ROOT = Path(__file__).parents[2]


@click.command()
@click.argument("path")
@click.option("--batch-size", type=int)
@click.option("--dtype")
@click.option("--dataset", "data", multiple=True)
@click.option("--gguf-cache/--no-gguf-cache", default=True)
@click.option("--resume", is_flag=True)
def some_command(**_: object) -> None:
    """Take options."""


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("batch_size: got 0, expected 1", "--batch-size: got 0, expected 1"),
        ("dtype: got 1\nbatch_size: got 2", "--dtype: got 1\n--batch-size: got 2"),
        ("changed:\n  - dtype: begun with 1", "changed:\n  - --dtype: begun with 1"),
        ("a: too long. Use `dtype` float32.", "a: too long. Use --dtype float32."),
        ("name one as `data`", "name one as --dataset"),
        ("name one as `dataset`", "name one as --dataset"),
        ("Use `gguf_cache=False`.", "Use --no-gguf-cache."),
        ("Use `gguf_cache=True`.", "Use --gguf-cache."),
        ("Add `resume=True`.", "Add --resume."),
        # What is not named as an option stays, be it a path, a value or another command's option.
        (
            "/data/batch_size/x: batch_size is not there",
            "/data/batch_size/x: batch_size is not there",
        ),
        ("the dtype is another: got 'batch_size'", "the dtype is another: got 'batch_size'"),
        ("`mav extract --dtype` and `top_k`", "`mav extract --dtype` and `top_k`"),
        ("path: no such file; dtype: 3", "path: no such file; dtype: 3"),
    ],
)
def test_only_what_is_named_as_an_option_becomes_its_flag(message: str, shown: str) -> None:
    assert with_flags(click.Context(some_command), message) == shown


@pytest.mark.parametrize("how", [logging.WARNING, logging.ERROR])
def test_what_is_logged_and_raised_is_shown_with_flags(how: int) -> None:
    @command("  mav speak")
    @click.option("--batch-size")
    def speak_command(batch_size: str | None) -> None:
        logging.getLogger("mav.room").log(how, "`batch_size` 8")
        raise UsageError("batch_size: got 8")

    result = CliRunner().invoke(speak_command)
    assert result.exit_code == 2
    assert result.stderr == "--batch-size 8\nError: --batch-size: got 8\n"


AT_A_SHELL: dict[str, set[str] | None] = {
    "serving/http/middleware.py": {"--host", "--api-key"},  # to a client of `mav serve`
    "comparison/answers.py": {"--output"},
    "comparison/exports.py": {"--model"},  # of FastChat
    "demo/run.py": None,  # prints the commands it stands for
    "demo/release.py": None,  # a command by itself, which writes how others are used
    "reporting/plots.py": None,  # variables of CSS look like flags
    "demo/switching.py": {"--demo-switching"},
    "extraction/dry_run.py": {"--logits", "--storage-dtype", "--compression", "--dry-run"},
    "harness/__main__.py": {"--model", "--tasks"},  # of lm_eval, here and in the next
    "harness/language_model.py": {"--model", "--tasks"},
    "engine/arguments.py": None,  # words of vLLM's command, here and in the next
    "engine/front.py": {"--num-beams"},  # of `mav generate`, to a client
    "engine/launch.py": None,
    "head/storage.py": {"--output-dir"},
    "head/card.py": {"--head", "--cache", "--alpha", "--base-model"},  # how it is used
    "verification/verify.py": {"--repair"},
    "extraction/options.py": {"--logits", "--dtype"},  # --help
    "training/options.py": {"--batch-size", "--output-dir"},
    "runtime/load_options.py": {"--device"},
    "runtime/options.py": {"--help"},
}


def test_the_pipeline_names_no_flags() -> None:
    """But of a command it names, in `--help`, and where the reader is at a shell."""
    for path in (ROOT / "pipeline").rglob("*.py"):
        name = path.relative_to(ROOT / "pipeline").as_posix()
        allowed = AT_A_SHELL.get(name, set())
        flags = set(re.findall(r"(?<![\w(-])--[a-z][a-z-]+", path.read_text(encoding="utf-8")))
        assert allowed is None or flags <= allowed, name
