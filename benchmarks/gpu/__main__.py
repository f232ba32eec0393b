"""Whether MAV is right on a GPU, and how fast: `python -m benchmarks.gpu`.

First what the device computes is compared with float32 on the CPU; then both stages, decoding and
serving are timed at LLaMA-7B's shapes with random weights. All of it takes less than eight minutes
on one card, and says so where it could not: every part has a budget, a part that fails is told
with its error, and the others go on. `--miniature` does the same at sizes that a CPU takes
seconds for.

A table goes to standard error; figures, as one JSON object, to `--json` after every part, or to
standard output at the end. Exits with 1 where a comparison is wrong or a part was not done.
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)

# isort: split

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.place import Settings
from benchmarks.gpu.report import all_right, table, write_docs
from benchmarks.gpu.running import Outcome, Part, run_parts
from benchmarks.synthetic import require_positive, say
from mav.cache_schema.errors import MAVError

_HERE: Final = "benchmarks.gpu"
PARTS: Final = (
    Part(name="machine", work=f"{_HERE}.time_stages:machine", seconds=60),
    Part(name="check forward", work=f"{_HERE}.check_forward:run", seconds=60),
    Part(name="check cache", work=f"{_HERE}.check_cache:run", seconds=60),
    Part(name="check training", work=f"{_HERE}.check_training:run", seconds=60),
    Part(name="check decoding", work=f"{_HERE}.check_decoding:run", seconds=60),
    Part(name="extraction", work=f"{_HERE}.time_stages:extraction", seconds=120),
    Part(name="decode", work=f"{_HERE}.time_decoding:decode", seconds=90),
    Part(name="serve", work=f"{_HERE}.time_decoding:serve", seconds=60),
    Part(name="training step", work=f"{_HERE}.time_stages:training_step", seconds=60),
    Part(name="stream", work=f"{_HERE}.time_stages:stream", seconds=60),
)
PAGE: Final = Path(__file__).parents[2] / "docs" / "gpu.md"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--miniature", action="store_true", help="all of it at tiny sizes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", default=None, help="some of them, such as machine,decode")
    parser.add_argument("--minutes", type=float, default=7.5, help="that all of it may take")
    parser.add_argument("--json", type=Path, default=None, help="file to write figures to")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/gpu.md")
    parser.add_argument("--work", type=Path, default=None, help="where to put a temporary folder")
    asked = parser.parse_args(argv)
    require_positive(parser, asked)
    names = [part.name for part in PARTS]
    asked.parts = names if asked.parts is None else asked.parts.split(",")
    if unknown := sorted({*asked.parts} - {*names}):
        parser.error(f"--parts: got {unknown[0]!r}, expected some of {', '.join(names)}")
    return asked


def as_json(found: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return all figures as plain values."""
    return {
        "right": all_right(found),
        "parts": {name: dataclasses.asdict(outcome) for name, outcome in found.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts; return 0 where all were done and right, else 1."""
    asked = parse(argv)

    def changed(found: Mapping[str, Outcome]) -> None:
        if asked.json is not None:
            asked.json.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(dir=asked.work, prefix="mav-gpu-") as work:
        settings = Settings(device=asked.device, miniature=asked.miniature, work=Path(work))
        parts = [part for part in PARTS if part.name in asked.parts]
        found = run_parts(parts, settings, 60 * asked.minutes, changed)
    say(table(found))
    if asked.json is None:
        print(json.dumps(as_json(found), indent=1))
    if asked.write_docs:
        try:
            write_docs(PAGE, found)
        except MAVError as error:
            sys.exit(f"Error: {error}")
    return 0 if all_right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
