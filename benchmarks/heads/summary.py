"""Rows of the table: one for each kind and recipe, its seeds together."""

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.baselines.results import accuracy_interval
from mav.pipeline.evaluation.statistics import mean_interval


def rows_of(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for the lines that differ in their seeds alone, the most accurate first.

    Intervals are over held-out pairs; see `benchmarks.baselines.results`.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        about = {name: value for name, value in line["run"].items() if name != "seed"}
        about["options"] = {n: v for n, v in about["options"].items() if n != "seed"}
        grouped.setdefault(repr(sorted(about.items())), []).append(line)
    rows = [_row(group) for group in grouped.values()]
    return sorted(rows, key=lambda row: -float(row["accuracy"]))


def _row(lines: list[dict[str, Any]]) -> dict[str, Any]:
    first = lines[0]
    right, margins, kl = (
        torch.tensor([line[name] for line in lines], dtype=torch.float64)
        for name in ("right", "margin", "kl")
    )
    accuracy, interval = accuracy_interval(right)
    margin, margin_interval = mean_interval(margins.mean(0))
    run = first["run"]
    return {
        **{name: run[name] for name in ("head_type", "recipe", "learning_rate", "num_epochs")},
        "options": {name: value for name, value in run["options"].items() if name != "seed"},
        "seeds": sorted(line["run"]["seed"] for line in lines),
        "training_pairs": first["training_pairs"],
        "held_out_pairs": right.shape[1],
        "parameters": first["parameters"],
        "accuracy": accuracy,
        "accuracy_interval": interval,
        "margin": margin,
        "margin_interval": margin_interval,
        "kl_per_token": float(kl.mean()),
        "scaled_loss": sum(line["evaluation"]["eval_scaled_loss"] for line in lines) / len(lines),
        "cpu_seconds": sum(line["cpu_seconds"] for line in lines) / len(lines),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out as a Markdown table."""
    lines = [
        "| head | recipe | seeds | reward accuracy | margin (nats) | KL/token | scaled loss "
        "| parameters | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["accuracy_interval"]
        margin = f"{row['margin']:.2f}"
        if row["margin_interval"] is not None:
            margin += " [{:.2f}, {:.2f}]".format(*row["margin_interval"])
        cells = [
            f"`{row['head_type']}`",
            f"`{row['recipe']}`",
            str(len(row["seeds"])),
            f"{row['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}]",
            margin,
            f"{row['kl_per_token']:.3f}",
            f"{row['scaled_loss']:.4f}",
            f"{row['parameters']:,}",
            f"{row['cpu_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if rows:
        pairs = sorted({(row["training_pairs"], row["held_out_pairs"]) for row in rows})
        told = "; ".join(f"{training:,} training, {held:,} held-out" for training, held in pairs)
        lines.append(f"\nPairs: {told}; 95 % intervals")
    return "\n".join(lines)
