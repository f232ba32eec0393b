"""Commands run in this process, and the whole line of them."""

import re
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from mav import cli
from tests.support.tiny import HIDDEN


def mav(*args: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def done(*args: object) -> str:
    """Run a command that must succeed; return its standard output."""
    result = mav(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


@dataclass(frozen=True, kw_only=True)
class Line:
    """Everything a user would have after extracting and training."""

    base: Path
    data: Path
    cache: Path
    run: Path

    @property
    def extract(self) -> list[object]:
        options = [
            "--dtype",
            "float32",
            "--storage-dtype",
            "float32",
            "--device",
            "cpu",
            "--pooled-size",
            HIDDEN,
        ]
        return [
            *["extract", "--base-model", self.base, "--dataset", self.data],
            *["--output", self.cache, "--max-length", 128, *options],
        ]

    @property
    def train(self) -> list[object]:
        sizes = ["--expansion-size", 16, "--batch-size", 4, "--grad-accum", 1, "--no-bf16"]
        learning = ["--eval-fraction", 0.3, "--learning-rate", 0.01]
        return ["train", "--cache", self.cache, "--output-dir", self.run, *sizes, *learning]

    @property
    def generate(self) -> list[object]:
        options = ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", 6]
        return ["generate", "--head", self.run, *options]


def refused(code: int, *args: object) -> str:
    """Run a command that must fail; return its one message."""
    result = mav(*args)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    _, *messages = re.split(r"^Error: ", result.stderr, flags=re.MULTILINE)
    assert len(messages) == 1, result.stderr
    return str(messages[0])


def unsound(*args: object) -> str:
    """Run a command that finds a cache unsound, which is no error of its own."""
    result = mav(*args)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1, result.output
    assert "Error: " not in result.stderr
    return result.stdout
