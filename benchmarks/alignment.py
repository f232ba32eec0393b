"""Held-out accuracy, KL, time and memory of MAV beside DPO-LoRA, GenARM and the base.

    python -m benchmarks.alignment --json --work FOLDER --dataset FILE

Every method is given the same tokens of the same pairs and is evaluated on the same held-out ones.
Each training run is a process of its own, and its result a file of its own under FOLDER/results:
what is there is not computed again, so a stopped comparison goes on where it was, and parts can be
run separately (`--methods dpo-lora --seed-list 0`). Baselines compute in bfloat16 with float32
adapters, and are evaluated merged, in float32; a head is evaluated from its bfloat16 cache, as
`mav evaluate` does. `benchmarks/baselines/mav.py` has the table of MAV variants.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.baselines.dpo import DPO
from benchmarks.baselines.genarm import GENARM
from benchmarks.baselines.job import Job
from benchmarks.baselines.jobs import run_job
from benchmarks.baselines.mav import VARIANTS
from benchmarks.baselines.results import difference, read_result, summarise
from benchmarks.baselines.split import DataSettings
from mav.pipeline.demo.run import installed_base

METHODS: Final = ("base", "dpo-lora", "genarm", "mav")


def planned(asked: argparse.Namespace) -> list[Job]:
    """Return all jobs that the request takes, in an order in which each finds what it needs."""
    data = DataSettings(
        base_model=asked.base_model or str(installed_base()),
        dataset=asked.dataset,
        limit=asked.limit,
        max_length=asked.max_length,
        eval_fraction=asked.eval_fraction,
    )
    common: dict[str, Any] = {"work": asked.work, "data": data}
    methods = asked.methods.split(",")
    if set(methods) - set(METHODS):
        raise SystemExit(f"--methods: got {asked.methods}, known: {', '.join(METHODS)}")
    named = asked.seed_list.split(",") if asked.seed_list else range(asked.seeds)
    seeds = [int(seed) for seed in named]
    wanted = asked.rows.split(",") if asked.rows else [variant.name for variant in VARIANTS]
    variants = [variant for variant in VARIANTS if variant.name in wanted]
    if len(variants) != len(wanted):
        known = ", ".join(variant.name for variant in VARIANTS)
        raise SystemExit(f"--rows: got {asked.rows}, known: {known}")
    jobs = []
    if set(methods) & {"base", "dpo-lora", "genarm"}:
        jobs.append(Job(kind="base", row="base", **common))
    if "dpo-lora" in methods:
        jobs.append(Job(kind="reference", row="base", **common))
    lora = {
        "dpo-lora": dataclasses.replace(DPO, learning_rate=asked.dpo_learning_rate),
        "genarm": dataclasses.replace(GENARM, learning_rate=asked.genarm_learning_rate),
    }
    layers = dict.fromkeys(variant.layers for variant in variants)
    if "mav" in methods:
        jobs += [Job(kind="extract", row=choice, **common) for choice in layers]
    for seed in seeds:  # a whole comparison with one seed comes first
        for method in ("dpo-lora", "genarm"):
            if method in methods:
                jobs.append(Job(kind=method, row=method, seed=seed, lora=lora[method], **common))
        if "mav" in methods:
            jobs += [
                Job(kind="mav", row=variant.name, seed=seed, variant=variant, **common)
                for variant in variants
            ]
    if not asked.no_decoding:
        rows = {job.row: job for job in reversed(jobs) if job.trains and job.row != "base"}
        if "base" in methods:
            jobs.append(Job(kind="decoding", row="base", **common))
        jobs += [
            Job(kind="decoding", row=row, seed=job.seed, variant=job.variant, **common)
            for row, job in reversed(rows.items())
        ]
    return jobs


def done(job: Job) -> dict[str, Any] | None:
    """Return a job's result if it is there, and is that of the same settings."""
    found = read_result(job.result)
    if found is not None and found["settings"] != job.settings:
        raise SystemExit(
            f"{job.result} was made with {found['settings']}, asked for is {job.settings}. "
            f"Use another --work folder, or delete that file."
        )
    return found


def run_all(jobs: list[Job], threads: int | None = None) -> None:
    """Run what is not there yet, each in a process of its own."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages make allocations cheap
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    processes = multiprocessing.get_context("spawn")
    missing = [job for job in jobs if done(job) is None]
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for number, job in enumerate(missing):
        _tell(f"[{number + 1}/{len(missing)}] {job.name}; {_left(missing[number:], taken)}")
        job.work.mkdir(parents=True, exist_ok=True)
        started = perf_counter()
        process = processes.Process(target=run_job, args=(job,))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{job.name} failed with {process.exitcode}; what was done is kept.")
        taken[job.kind].append(perf_counter() - started)
        _tell(f"{job.name}: {taken[job.kind][-1]:.0f} s")


def _left(jobs: list[Job], taken: dict[str, list[float]]) -> str:
    known = [sum(taken[job.kind]) / len(taken[job.kind]) for job in jobs if taken.get(job.kind)]
    unknown = len(jobs) - len(known)
    minutes = f"about {sum(known) / 60:.0f} min left" if known else "time left not known yet"
    return minutes + (f" and {unknown} jobs of unknown length" if known and unknown else "")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def rows_of(jobs: list[Job]) -> list[dict[str, Any]]:
    """Return the table's rows from the results that are there."""
    by_row: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        if job.trains and (found := done(job)) is not None:
            by_row[job.row].append(found)
    decoding = {job.row: done(job) for job in jobs if job.kind == "decoding"}
    rows = []
    for name, results in by_row.items():
        row = summarise(results)
        if name not in ("base", "dpo-lora") and "dpo-lora" in by_row:
            row["against_dpo_lora"] = difference(results, by_row["dpo-lora"])
        if (measured := decoding.get(name)) is not None:
            left_out = ("row", "method", "seed", "settings")
            row["decoding"] = {k: v for k, v in measured.items() if k not in left_out}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for reading."""
    names = ("KL/token", "train s", "parameters", "ms/token")
    lines = [" " * 30 + "reward acc." + " " * 15 + "logp acc.  " + "  ".join(names)]
    for row in rows:
        decoding = row.get("decoding", {}).get("seconds_per_token", float("nan"))
        lines.append(
            f"{row['row']:<22}{_share(row, 'reward_accuracy'):>24}"
            f"{_share(row, 'logp_accuracy'):>24}{row['kl_per_token']:>10.3f}"
            f"{row.get('training_seconds', 0):>9.0f}{row.get('trainable_parameters', 0):>13,}"
            f"{1000 * decoding:>10.1f}"
        )
    return "\n".join(lines)


def _share(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Run, and print one JSON object or a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of all results")
    parser.add_argument("--base-model", default=None, help="by default the installed SmolLM2-135M")
    parser.add_argument("--dataset", required=True, help="file of preference pairs")
    parser.add_argument("--limit", type=int, default=None, help="read only this many rows")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--eval-fraction", type=float, default=0.29)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rows", default=None, help="names of MAV variants; all if not given")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this, exclusive")
    parser.add_argument("--seed-list", default=None, help="seeds by name, such as 0,2")
    parser.add_argument("--dpo-learning-rate", type=float, default=DPO.learning_rate)
    parser.add_argument("--genarm-learning-rate", type=float, default=GENARM.learning_rate)
    parser.add_argument("--threads", type=int, default=None, help="of each run; 1 on busy CPUs")
    parser.add_argument("--no-decoding", action="store_true", help="leave decoding speed out")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    jobs = planned(asked)
    run_all(jobs, asked.threads)
    rows = rows_of(jobs)
    print(json.dumps({"rows": rows}, indent=1) if asked.json else table(rows))


if __name__ == "__main__":
    main()
