r"""Held-out accuracy of kinds of head and of recipes to train them, from one cache.

    mav extract --base-model BASE --dataset pairs.jsonl.gz --limit 1549 --output hh.cache \
        --pooled-size 576
    python -m benchmarks.heads --cache hh.cache --work FOLDER

Runs what is missing in the file of results, then prints the table that the file has. A run that was
stopped begins again; finished ones are lines of the file and never run again. The table alone, from
the file: --table.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.command_line import read_seeds, run_command
from benchmarks.heads.grid import RECIPES, SIZES, variants
from benchmarks.heads.summary import rows_of, table
from benchmarks.result_lines import ResultLines
from mav.cache_schema.errors import UsageError

RESULTS: Final = Path(__file__).with_name("results.jsonl")
"""The file that is committed."""


def main() -> None:
    """Run, and print one JSON array or a table."""
    run_command(_run, _parser())


def _run(asked: argparse.Namespace) -> None:
    results = ResultLines(asked.results)
    if not asked.table:
        for name in ("cache", "work"):
            if getattr(asked, name) is None:
                raise UsageError(f"--{name}: got none, expected a folder; --table runs nothing")
        from benchmarks.heads.runs import run_missing

        kinds: Any = asked.kinds.split(",")
        wanted = variants(
            kinds,
            asked.recipes.split(","),
            read_seeds(asked.seeds),
            learning_rate=asked.learning_rate,
            num_epochs=asked.epochs,
            eval_fraction=asked.eval_fraction,
        )
        run_missing(asked.cache, asked.work, results, wanted, most=asked.most)
    rows = rows_of(results)
    print(json.dumps(rows, indent=1) if asked.json else table(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds, recipes = ",".join(SIZES), ",".join(RECIPES)
    parser.add_argument("--cache", type=Path, help="cache of the pairs")
    parser.add_argument("--work", type=Path, help="folder for what is trained")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of finished runs")
    parser.add_argument("--kinds", default=kinds, help=f"some of {kinds}")
    parser.add_argument("--recipes", default=recipes, help=f"some of {recipes}")
    parser.add_argument("--seeds", default="0", help="of training, such as 0,1,2")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak rate")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training pairs")
    parser.add_argument("--eval-fraction", type=float, default=0.2, help="share held out")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
