"""A piece of the comparison: what it is, and where its result and its model go."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.baselines import mav
from benchmarks.baselines.lora import LoraSettings
from benchmarks.baselines.split import DataSettings

Kind = Literal["base", "reference", "extract", "dpo-lora", "genarm", "mav", "decoding"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A piece of work.

    Attributes:
        kind: What is done.
        row: Row of the table it belongs to; for an extraction, the layers.
        work: Folder of everything written.
        data: The pairs.
        seed: Seed of a training run.
        lora: Settings of a baseline.
        variant: Variant of a head.
    """

    kind: Kind
    row: str
    work: Path
    data: DataSettings
    seed: int = 0
    lora: LoraSettings | None = None
    variant: mav.Variant | None = None

    @property
    def trains(self) -> bool:
        """Whether its result is a row's, for one seed."""
        return self.kind in ("base", "dpo-lora", "genarm", "mav")

    @property
    def name(self) -> str:
        """Name of its result."""
        if self.kind == "mav" or (self.trains and self.kind != "base"):
            return f"{self.row}-seed{self.seed}"
        return self.row if self.kind == "base" else f"{self.kind}-{self.row}"

    @property
    def result(self) -> Path:
        """File of its result."""
        return self.work / "results" / f"{self.name}.json"

    @property
    def model(self) -> Path:
        """Folder of what it trains."""
        return self.work / "models" / self.name

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its result, as JSON gives it back."""
        chosen: dict[str, Any] = {"data": dataclasses.asdict(self.data), "seed": self.seed}
        if self.lora is not None:
            chosen["lora"] = dataclasses.asdict(self.lora)
        if self.variant is not None:
            chosen["variant"] = dataclasses.asdict(self.variant)
            chosen["common"] = dict(mav.COMMON)
        found: dict[str, Any] = json.loads(json.dumps(chosen))
        return found


def cache_of(work: Path, layers: str) -> Path:
    """Place of the cache of a choice of layers."""
    return work / "caches" / f"{layers.replace(',', '-')}.cache"
