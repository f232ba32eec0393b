"""Commands run in this process, and the whole line of them."""

import re
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from mav import cli
from tests.support.models.tiny import HIDDEN, save_base, tiny_base, write_rows


def mav(*args: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def done(*args: object) -> str:
    """Run a command that must succeed; return its standard output."""
    result = mav(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def extract_args(base: Path, data: Path, output: Path, *options: object) -> list[object]:
    """The extraction of a tiny base in float32, with further options."""
    return [
        *["extract", "--base-model", base, "--dataset", data, "--output", output],
        *["--dtype", "float32", "--storage-dtype", "float32"],
        *["--device", "cpu", "--pooled-size", HIDDEN],
        *["--max-length", 128, *options],
    ]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Everything a user would have after extracting and training."""

    base: Path
    data: Path
    cache: Path
    run: Path

    @classmethod
    def begun(cls, folder: Path, pairs: int) -> "Line":
        """A base, data of so many pairs, and the cache that the command made of them."""
        line = cls(
            base=save_base(tiny_base(), folder / "base"),
            data=write_rows(folder / "pairs.jsonl", pairs),
            cache=folder / "cache",
            run=folder / "head",
        )
        done(*line.extract)
        return line

    @property
    def extract(self) -> list[object]:
        return extract_args(self.base, self.data, self.cache)

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


def tree(folder: Path) -> dict[Path, bytes | None]:
    """Every path below a folder, files with their contents."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
