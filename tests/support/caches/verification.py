"""What the tests of `mav verify` share: a cache, ways to damage it, and comparing it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import Result

from tests.support.running.commands import extract_args, mav

PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class World:
    """A base, data and a cache of several blocks that the command made; read only."""

    base: Path
    data: Path
    cache: Path

    def extract(self, output: Path, *options: object) -> list[object]:
        return extract_args(self.base, self.data, output, *options)


def change(file: Path, place: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def against(cache: Path, count: int, *options: object) -> Result:
    return mav("verify", cache, "--against-base", count, "--device", "cpu", *options)


def compared(cache: Path, count: int = PAIRS, *options: object) -> dict[str, Any]:
    """Compare a cache with its base; return what was found of pairs."""
    result = against(cache, count, "--json", *options)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["sound"] else 1)
    assert found["sound"] == (not found["against_base"]["differing"])
    return dict(found["against_base"])
