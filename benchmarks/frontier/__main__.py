r"""Gold reward against KL, of MAV and of what people use instead, on one base and the same pairs.

    python -m benchmarks.frontier --work FOLDER --json

Runs what is missing in the file of results, then prints the table that the file has. A run that was
stopped goes on where it was; what --work holds (pairs, caches, models) may be deleted at any time.
Without --tune every rate is the default of its method. A reduced table, about an hour on two idle
cores:

    python -m benchmarks.frontier --work FOLDER --training-prompts 240 --answers 4 \
        --new-tokens 32 --kl-prompts 48 --ranking-prompts 64 --of-n-prompts 48

The table alone, from a file: --table.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.command_line import read_seeds, run_command
from benchmarks.frontier.methods import METHODS, methods_named
from benchmarks.frontier.picture import draw
from benchmarks.frontier.results import Results
from benchmarks.frontier.settings import Place, Sizes
from benchmarks.frontier.summary import summary, table
from mav.cache_schema.errors import UsageError
from mav.pipeline.demo.run import installed_base
from mav.pipeline.runtime.options import option_of

RESULTS: Final = Path(__file__).with_name("results.jsonl")
"""The file that is committed."""


def main() -> None:
    """Run, and print one JSON object or a table."""
    run_command(_run, _parser())


def _run(asked: argparse.Namespace) -> None:
    base_model = asked.base_model or str(installed_base())
    chosen: dict[str, Any] = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(Sizes)
        if field.name != "base"
    }
    sizes = Sizes(base=Path(base_model).name, **chosen)
    methods = methods_named(asked.methods)
    seeds = read_seeds(asked.seeds)
    results = Results(asked.results)
    if not asked.table:
        if asked.work is None:
            raise UsageError("--work: got none; name a folder for pairs, caches and models")
        from benchmarks.frontier.experiment import run_all

        place = Place(work=asked.work)
        place.claim(sizes)
        run_all(
            sizes,
            place,
            base_model,
            results,
            methods,
            seeds,
            tune=asked.tune or asked.tune_only,
            report=not asked.tune_only,
            share=asked.share,
        )
    told = summary(results, sizes)
    if asked.picture is not None:
        draw(told["rows"], asked.picture)
    print(json.dumps(told, indent=1) if asked.json else table(told))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ",".join(method.name for method in METHODS)
    parser.add_argument("--work", type=Path, help="folder of pairs, caches and models")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of finished runs")
    parser.add_argument("--base-model", help="by default the installed SmolLM2-135M")
    parser.add_argument("--methods", default=names, help=f"some of {names}")
    parser.add_argument("--seeds", default="0", help="of training, such as 0,1,2")
    parser.add_argument("--tune", action="store_true", help="run each grid on tuning prompts")
    parser.add_argument(
        "--tune-only", action="store_true", help="run grids, and nothing on held-out prompts"
    )
    parser.add_argument("--share", action="store_true", help="distil DPO's model into a head")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves as SVG")
    parser.add_argument("--json", action="store_true")
    sizes = parser.add_argument_group("sizes; results of other sizes are another table")
    for field in dataclasses.fields(Sizes):
        if (known := option_of(field)) is not None:
            sizes.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=int if known.whole else float,
                default=field.default,
                metavar="N",
                help=f"{known.help} (default {field.default})",
            )
    return parser


if __name__ == "__main__":
    main()
