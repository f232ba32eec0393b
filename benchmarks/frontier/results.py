"""The file of results: a line for each finished run, which is never run again.

A line is a JSON object. What it is about is its `run`: kind, method, setting, strength, seed, part
and sizes. The rest is what was found. Lines are only ever added, so that the file grows over days
and machines; a line that was cut off by a crash is told and left out.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.frontier.prompts import Part
from benchmarks.frontier.settings import Sizes
from benchmarks.synthetic import device_name, say
from mav.pipeline.runtime.compute_dtype import native_dtype, plain_name

Kind = Literal["curve", "ranking", "time", "share"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a line is about.

    Attributes:
        kind: A point of a curve; or ranking accuracy, time per token, or the share of a shift that
            a head expresses.
        method: Name of the method.
        setting: Its rate; None where it has none.
        strength: Alpha, scale, multiplier, n; 0 for the base.
        seed: Seed of training and of sampling.
        part: Prompts it was measured on.
        sizes: Sizes of the experiment.
    """

    kind: Kind
    method: str
    sizes: Sizes
    setting: float | None = None
    strength: float = 0.0
    seed: int = 0
    part: Part = "held-out"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


class Results:
    """The lines of a file."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that is not there yet has no lines."""
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        if not path.is_file():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
                self._found[_key(values["run"])] = values
            except (ValueError, KeyError, TypeError):
                say(f"{path}, line {number}: is no result, and is left out")

    def get(self, run: Run) -> dict[str, Any] | None:
        """Return what was found for a run, or None if it was not run yet."""
        return self._found.get(_key(run.to_json()))

    def add(self, run: Run, found: Mapping[str, Any]) -> None:
        """Add a line, forced to the disk."""
        values = {"run": run.to_json(), **found, "machine": machine()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            # Behind a line that was cut off, this one would be lost with it.
            file.write(("\n" if begun and self.path.stat().st_size else "") + json.dumps(values))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[_key(values["run"])] = values

    def of(self, sizes: Sizes, kind: Kind) -> Iterator[tuple[Run, dict[str, Any]]]:
        """Yield runs of a kind and of these sizes, in the order they were made."""
        wanted = dataclasses.asdict(sizes)
        for values in self._found.values():
            if values["run"]["sizes"] == wanted and values["run"]["kind"] == kind:
                yield Run(**{**values["run"], "sizes": sizes}), values


def _key(run: Mapping[str, Any]) -> str:
    return json.dumps(run, sort_keys=True)


def machine() -> dict[str, str]:
    """Return what the figures depend on but the sizes do not say."""
    return {
        "processor": device_name(torch.device("cpu")),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "sampled_in": plain_name(native_dtype(torch.device("cpu"))),
        "kl_in": "float32",
    }
