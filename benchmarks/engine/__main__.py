"""Run every configuration in turns, and print seconds, tokens per second and ratios."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

import torch

from benchmarks.command_line import run_command
from mav.cache_schema.errors import MAVError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.source import resolve_base
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.head.config import head_config
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import save_head
from mav.pipeline.head.storage import HeadOrigin
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.choices import HeadKind

_SAMPLE: Final = Path(__file__).parents[2] / "pipeline" / "demo" / "sample"
_PAIRS: Final = 4
PLAIN: Final = "vllm"


def make_heads(base: str, folder: Path) -> dict[str, Path]:
    """Save a head of each kind, of its default sizes with random weights, for a base."""
    lines = next(_SAMPLE.glob("*-train.jsonl")).read_text(encoding="utf-8").splitlines()
    pairs = folder / "pairs.jsonl"
    pairs.write_text("\n".join(lines[:_PAIRS]) + "\n", encoding="utf-8")
    cache = folder / "cache"
    extract(ExtractOptions(base_model=base, data=DataSource(id=str(pairs)), output=cache))
    manifest = CacheReader(cache).manifest
    origin = HeadOrigin(
        manifest=manifest, objective="dpo", beta=0.1, held_out_fraction=0.0, steps=0
    )
    made: dict[str, Path] = {}
    kinds: tuple[HeadKind, ...] = get_args(HeadKind)
    for kind in kinds:
        states = manifest.states
        layers, size = len(states.layers), states.pooled_size
        config = head_config(manifest.base, kind, num_layers=layers, pooled_size=size)
        torch.manual_seed(0)
        head = AlignmentHead(config)
        torch.nn.init.normal_(head.project.weight, std=0.001)
        save_head(head, origin, folder / kind)
        made[kind] = folder / kind
    return made


def run_configuration(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one in a process of its own; return its rounds.

    Raises:
        MAVError: It failed.
    """
    program = [sys.executable, "-m", "benchmarks.engine.configuration", json.dumps(job)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    for line in ended.stdout.splitlines():
        if line.startswith("RESULT "):
            rounds: list[dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
            return rounds
    raise MAVError(f"{job['way']} with {job['head']} failed:\n{ended.stderr[-2000:]}")


def rows_of(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return medians by configuration and alpha, and their ratios to vLLM without a head."""
    rows = []
    for name, rounds in results.items():
        for alpha in dict.fromkeys(one["alpha"] for one in rounds):
            own = [one for one in rounds if one["alpha"] == alpha]
            speeds = [one["tokens"] / one["processor_seconds"] for one in own]
            clock = median(one["tokens"] / one["seconds"] for one in own)
            rows.append(
                {
                    "configuration": name,
                    "alpha": alpha,
                    "tokens_per_processor_second": median(speeds),
                    "slowest": min(speeds),
                    "quickest": max(speeds),
                    "tokens_per_second": clock,
                }
            )
    plain = rows[0]["tokens_per_processor_second"]
    return [{**row, "ratio": row["tokens_per_processor_second"] / plain} for row in rows]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return them as people read them."""
    lines = [f"{'configuration':24} alpha   tokens/s of processor (slowest, quickest)   of vLLM"]
    for row in rows:
        alpha = "" if row["alpha"] is None else f"{row['alpha']:g}"
        speed, low, high = (
            row[name] for name in ("tokens_per_processor_second", "slowest", "quickest")
        )
        lines.append(
            f"{row['configuration']:24} {alpha:7} {speed:9.1f} ({low:.1f}, {high:.1f})"
            f"{'':14} {row['ratio']:.2f}"
        )
    return "\n".join(lines)


def main(asked: argparse.Namespace) -> None:
    """Run the benchmark."""
    shared = {
        "dtype": asked.dtype,
        "requests": asked.requests,
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "rounds": asked.rounds,
        "kv_cache_bytes": asked.kv_cache_mib << 20,
        "token_range": [100, asked.last_token],
        "eager": not asked.compiled,
    }
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = with_copy(resolve_base(asked.base), gguf_cache=True)
        heads = make_heads(asked.base, Path(folder))
        model = str((source.converted or source.folder).resolve())
        plain = {"way": "vllm", "head": None, "model": model, "alphas": [None], **shared}
        results[PLAIN] = run_configuration(plain)
        for kind, head in heads.items():
            both = {"head": str(head), "model": model, "alphas": [0.0, 1.0], **shared}
            results[f"vllm {kind}"] = run_configuration({"way": "vllm", **both})
            if kind in asked.beside.split(","):
                results[f"mav generate {kind}"] = run_configuration({"way": "mav", **both})
                results[f"mav serve {kind}"] = run_configuration({"way": "serve", **both})
        # Once more at the end: what else the machine did is seen in the difference.
        results[PLAIN] += run_configuration(plain)
    rows = rows_of(results)
    print(json.dumps(rows, indent=1) if asked.json else table(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--base", required=True, help="folder or hub id of a base")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--last-token", type=int, default=30000, help="largest token of prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-mib", type=int, default=512)
    parser.add_argument(
        "--beside", default="mlp", help="kinds to time `mav generate` and `mav serve` with too"
    )
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile the base")
    parser.add_argument("--json", action="store_true")
    run_command(main, parser)
