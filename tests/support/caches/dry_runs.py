"""An extraction that may be run, and looked at before."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from mav.cache_schema.size_estimate import METADATA
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.block_runner import BlockForward
from mav.pipeline.extraction.dry_run import DryRunReport, dry_run
from mav.pipeline.extraction.extract import ExtractReport, extract
from mav.pipeline.extraction.options import ExtractOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """An extraction that may be run, and looked at before."""

    base: BaseModel
    options: ExtractOptions

    @property
    def output(self) -> Path:
        return Path(self.options.output)

    def expected(self) -> DryRunReport:
        return dry_run(self.options, base=self.base)

    def run(self) -> ExtractReport:
        return extract(self.options, base=self.base)

    def changed(self, **options: Any) -> "Asked":
        return Asked(base=self.base, options=dataclasses.replace(self.options, **options))

    def bytes_by_array(self) -> Counter[str]:
        """The bytes that lie in the cache, under the names of a preflight."""
        found: Counter[str] = Counter()
        for key, size in open_object_store(self.output).sizes().items():
            found[key.rsplit("/", 1)[0] if "/c." in key else METADATA] += size
        return found


def interrupt(asked: Asked, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Extract so many blocks, then fail as a machine that is switched off does."""
    run = BlockForward.run
    begun = itertools.count()

    def fails(self: BlockForward, *args: Any) -> dict[str, NDArray[Any]]:
        if next(begun) == blocks:
            raise KeyboardInterrupt
        return run(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockForward, "run", fails)
        asked.run()


def with_free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(LocalObjectStore, "free_bytes", lambda _: int(free))
