"""`mav extract` on a disk that fails: one clear line, exit code 1, and the same command goes on."""

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from mav import cli
from tests.support.faults.cache_program import decoded_digest
from tests.support.faults.watched_os import Count, Fail, watching
from tests.support.models.tiny import save_base, tiny_base, write_rows

FAILURES: Final = (
    # Call, error, and how many such calls from the last one on: in the creation or in the block.
    ("write", errno.ENOSPC, 12),
    ("write", errno.ENOSPC, 3),
    ("fsync", errno.EIO, 30),
    ("fsync", errno.EIO, 8),
    ("link", errno.ENOSPC, 2),
    ("rename", errno.ENOSPC, 2),
    ("rename", errno.EIO, 1),
    ("open", errno.EMFILE, 9),
    ("flock", errno.ENOLCK, 2),
)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command, without its output."""
    folder = tmp_path_factory.mktemp("inputs")
    base = save_base(tiny_base(), folder / "base")
    rows = write_rows(folder / "pairs.jsonl", 8)
    return [
        "extract",
        "--base-model",
        str(base),
        "--dataset",
        str(rows),
        "--dtype",
        "float32",
        "--storage-dtype",
        "float32",
    ]


@pytest.fixture(scope="module")
def done(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Counter[str]]:
    """The digest of what it makes, and the calls it takes."""
    location = tmp_path_factory.mktemp("done") / "cache"
    count = Count()
    with watching(count):
        result = mav(command, location)
    assert result.exit_code == 0, result.output
    return decoded_digest(location), Counter(count.names)


def mav(command: list[str], output: Path) -> Result:
    return CliRunner().invoke(cli.main, [*command, "--output", str(output)])


@pytest.mark.parametrize(("kind", "error", "from_last"), FAILURES)
def test_the_user_is_told_and_can_go_on(
    kind: str,
    error: int,
    from_last: int,
    command: list[str],
    done: tuple[str, Counter[str]],
    tmp_path: Path,
) -> None:
    digest, calls = done
    location = tmp_path / "cache"
    failing = Fail(kind, calls[kind] - from_last, error)
    with watching(failing):
        result = mav(command, location)
    assert failing.failed == 1
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(told) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == told[0]
    assert str(location) in told[0]
    assert os.strerror(error) in told[0]

    with watching(Count()):
        again = mav(command, location)
    assert again.exit_code == 0, again.output
    assert decoded_digest(location) == digest
