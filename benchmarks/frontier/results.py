"""The file of results: a line for each point, correlation, accuracy, time or share measured.

What a line is about is its `run`: kind, method, setting, strength, seed, part and sizes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.frontier.prompts import Part
from benchmarks.frontier.settings import Sizes
from benchmarks.result_lines import ResultLines
from benchmarks.synthetic import device_name
from mav.pipeline.runtime.compute_dtype import native_dtype, plain_name

Kind = Literal["curve", "correlation", "ranking", "time", "share"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a line is about.

    Attributes:
        kind: A point of a curve; or the correlation that a rate is chosen by, ranking accuracy,
            time per token, or the share of a shift that a head expresses.
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
    """The lines of a file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that is not there yet has no lines."""
        self.path = path
        self._lines = ResultLines(path)

    def get(self, run: Run) -> dict[str, Any] | None:
        """Return what was found for a run, or None if it was not run yet."""
        return self._lines.get(run.to_json())

    def add(self, run: Run, found: Mapping[str, Any]) -> None:
        """Add a line, forced to the disk."""
        self._lines.add(run.to_json(), {**found, "machine": machine()})

    def of(self, sizes: Sizes, kind: Kind) -> Iterator[tuple[Run, dict[str, Any]]]:
        """Yield runs of a kind and of these sizes, in the order they were made."""
        wanted = dataclasses.asdict(sizes)
        for values in self._lines:
            if values["run"]["sizes"] == wanted and values["run"]["kind"] == kind:
                yield Run(**{**values["run"], "sizes": sizes}), values


def machine() -> dict[str, str]:
    """Return what the figures depend on but the sizes do not say."""
    return {
        "processor": device_name(torch.device("cpu")),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "sampled_in": plain_name(native_dtype(torch.device("cpu"))),
        "kl_in": "float32",
    }
