"""Options of `mav harness`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """Options of a run of tasks at several alphas.

    Attributes:
        head: Folder of a head or of a training run, or a hub id.
        tasks: Names of tasks, groups or tags, `*` standing for anything in a name; or YAML files.
        base_model: Hub id, folder or `.gguf` file; None for the base the head was trained on.
        alphas: Strengths. Where 0 is one of them, the others are compared with it.
        include_path: Folders with your own task files.
        limit: Most documents of each task; all if None.
        batch_size: Requests of a pass.
        num_fewshot: Examples before each question; if None, the task's own number.
        loading: Further arguments of `MAVInference`.
    """

    head: str
    tasks: tuple[str, ...]
    base_model: str | None = None
    alphas: tuple[float, ...] = (0.0, 1.0, 2.0)
    include_path: tuple[Path, ...] = ()
    limit: int | None = option(
        None, whole=True, at_least=1, help="Most documents of each task.  [default: all]"
    )
    batch_size: int = option(8, whole=True, at_least=1, help="Requests of a pass.")
    num_fewshot: int | None = option(
        None,
        whole=True,
        at_least=0,
        help="Examples before each question.  [default: as each task says]",
    )
    loading: dict[str, Any]

    def __post_init__(self) -> None:
        check_options(self)
        problems = []
        if not self.tasks:
            problems.append("tasks: got none, expected the name of at least one")
        if not self.alphas or not all(map(math.isfinite, self.alphas)):
            problems.append(f"alphas: got {list(self.alphas)}, expected finite numbers")
        if doubles := _doubles(self.alphas):
            problems.append(f"alphas: got {doubles[0]:g} twice, expected each strength once")
        if doubles := _doubles(self.tasks):
            problems.append(f"tasks: got {doubles[0]} twice, expected each task once")
        problems += [
            f"include_path: got {folder}, expected a folder with task files"
            for folder in self.include_path
            if not folder.is_dir()
        ]
        if problems:
            raise UsageError("\n".join(problems))


def _doubles(values: Sequence[Any]) -> list[Any]:
    return [value for at, value in enumerate(values) if value in values[:at]]
