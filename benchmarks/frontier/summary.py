"""The table: for each method, what its curve comes to, read from the file of results."""

from collections import defaultdict
from typing import Any, Final

import numpy as np

from benchmarks.frontier.curves import (
    Point,
    difference_with_interval,
    interval,
    point_of,
    reward_with_interval,
    spearman,
)
from benchmarks.frontier.methods import BASE, BEST_OF_N, METHODS, RATES, SEARCHED, Method
from benchmarks.frontier.prompts import Part
from benchmarks.frontier.results import Results
from benchmarks.frontier.settings import Sizes

KLS: Final = (2.0, 5.0, 10.0)
"""Nats at which curves are compared."""
_FEWEST_RUNS: Final = 4
_AT: Final = "5"
_HEADS: Final = ("-last", "-best")
_RIVAL: Final = "dpo-lora"


def points_of(
    results: Results, sizes: Sizes, name: str, setting: float | None, part: Part
) -> list[Point]:
    """Return the points of a method's curve, by strength, each of all its seeds."""
    by_strength: defaultdict[float, list[dict[str, Any]]] = defaultdict(list)
    for run, line in results.of(sizes, "curve"):
        if (run.method, run.setting, run.part) == (name, setting, part):
            by_strength[run.strength].append(line)
    return [point_of(lines) for _, lines in sorted(by_strength.items())]


def correlations(results: Results, sizes: Sizes, method: Method) -> dict[float, float]:
    """Return the correlation with the gold reward on tuning prompts by setting tried."""
    return {
        run.setting: line["correlation"]
        for run, line in results.of(sizes, "correlation")
        if run.method == method.name and run.setting is not None
    }


def chosen_setting(results: Results, sizes: Sizes, method: Method) -> float | None:
    """Return the setting that did best on the tuning prompts, or the default; see `tuning`."""
    found = correlations(results, sizes, method)
    return max(found, key=lambda setting: found[setting]) if found else method.default


def rows_of(results: Results, sizes: Sizes) -> list[dict[str, Any]]:
    """Return the table's rows, of the methods there are lines of.

    The setting that was chosen comes first, then others that were run to their end too.
    """
    base = points_of(results, sizes, BASE.name, None, "held-out")
    rows = []
    for method in (*METHODS, *SEARCHED):
        chosen = chosen_setting(results, sizes, method)
        run = {at.setting for at, _ in results.of(sizes, "curve") if at.method == method.name}
        for setting in (chosen, *sorted(one for one in run if one is not None and one != chosen)):
            points = points_of(results, sizes, method.name, setting, "held-out")
            if setting == chosen and points:
                rows.append(_row(results, sizes, method, setting, points, base))
            elif len(points) == len(method.strengths):
                rows.append(_row(results, sizes, method, setting, points, base) | {"chosen": False})
    return rows


def _row(
    results: Results,
    sizes: Sizes,
    method: Method,
    setting: float | None,
    points: list[Point],
    base: list[Point],
) -> dict[str, Any]:
    seeds = {
        run.seed
        for run, _ in results.of(sizes, "curve")
        if (run.method, run.setting, run.part) == (method.name, setting, "held-out")
    }
    row: dict[str, Any] = {
        "method": method.name,
        "label": method.label,
        "setting": setting,
        "chosen": True,
        "correlations": dict(sorted(correlations(results, sizes, method).items())),
        "means": method.means,
        "seeds": sorted(seeds),
        "prompts": len(points[0].reward),
        "kl_prompts": len(points[0].kl),
        "points": [
            {
                "strength": point.strength,
                "reward": float(point.reward.mean()),
                "reward_interval": interval(point.reward),
                "kl": float(point.kl.mean()),
                "kl_interval": interval(point.kl),
            }
            for point in points
        ],
    }
    if method is not BASE and base:
        origin = base[0]
        if method is BEST_OF_N:
            # Its curve begins at the base's reward on the prompts that it has.
            fewer = origin.reward[: len(points[0].reward)]
            origin = Point(strength=0.0, reward=fewer, kl=np.zeros(len(fewer)))
        row["reward_at"] = {f"{kl:g}": reward_with_interval(kl, [origin, *points]) for kl in KLS}
    for kind, name in (("time", "time_over_base"), ("ranking", "accuracy")):
        found = [
            line[name]
            for run, line in results.of(sizes, kind)  # type: ignore[arg-type]
            if (run.method, run.setting) == (method.name, setting)
        ]
        if found:
            row[name] = sum(found) / len(found)
    return row


def ranking_predicts(results: Results, sizes: Sizes, kl: float = KLS[0]) -> dict[str, Any]:
    """Return how ranking accuracy and reward at a KL go together over training runs.

    Returns:
        The runs, each with both figures, those that do not reach this KL counted; and Spearman's
        correlation, None of fewer than four.
    """
    base = points_of(results, sizes, BASE.name, None, "held-out")
    runs, short = [], 0
    for run, line in results.of(sizes, "ranking"):
        lines = [
            other
            for at, other in results.of(sizes, "curve")
            if (at.method, at.setting, at.seed, at.part)
            == (run.method, run.setting, run.seed, "held-out")
        ]
        points = [*base, *(point_of([one]) for one in lines)]
        found = reward_with_interval(kl, points) if base and lines else None
        if found is None:
            short += 1
            continue
        runs.append(
            {
                "method": run.method,
                "setting": run.setting,
                "seed": run.seed,
                "accuracy": line["accuracy"],
                "reward": found[0],
            }
        )
    correlation = None
    if len(runs) >= _FEWEST_RUNS:
        correlation = spearman([r["accuracy"] for r in runs], [r["reward"] for r in runs])
    return {"kl": kl, "runs": runs, "do_not_reach": short, "spearman": correlation}


def over_rival(results: Results, sizes: Sizes, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how much more reward the best head has than LoRA-DPO, at every rate that was run.

    The best is the one with the most reward at 5 nats; differences are paired by prompt.
    """
    base = points_of(results, sizes, BASE.name, None, "held-out")
    heads = [row for row in rows if row["method"].endswith(_HEADS) and row["chosen"]]
    reaching = [row for row in heads if row.get("reward_at", {}).get(_AT) is not None]
    rivals = [row for row in rows if row["method"] == _RIVAL]
    if not reaching or not base:
        return []
    best = max(reaching, key=lambda row: float(row["reward_at"][_AT][0]))

    def curve(row: dict[str, Any]) -> list[Point]:
        return [*base, *points_of(results, sizes, row["method"], row["setting"], "held-out")]

    return [
        {
            "method": best["label"],
            "rival": rival["label"],
            "rival_setting": rival["setting"],
            "more": {
                f"{kl:g}": difference_with_interval(kl, curve(best), curve(rival)) for kl in KLS
            },
        }
        for rival in rivals
    ]


def summary(results: Results, sizes: Sizes) -> dict[str, Any]:
    """Return everything that is told, as JSON has it."""
    rows = rows_of(results, sizes)
    shares = [line for _, line in results.of(sizes, "share")]
    machines = {line["machine"]["processor"] for _, line in results.of(sizes, "curve")}
    return {
        "rows": rows,
        "over_dpo_lora": over_rival(results, sizes, rows),
        "ranking": ranking_predicts(results, sizes),
        "share_of_dpo_lora": [
            {name: value for name, value in line.items() if name not in ("run", "machine")}
            for line in shares
        ],
        "machines": sorted(machines),
        "rates": RATES,
    }


def table(told: dict[str, Any]) -> str:
    """Lay a summary out as a Markdown table, with lines for the other questions."""
    heads = [f"at {kl:g} nats" for kl in KLS]
    lines = [
        "| method | rate | seeds, prompts (of KL) | "
        + " | ".join(heads)
        + " | farthest: KL, reward | ranks right | time over base |",
        "| --- | --- | --- | " + " | ".join("---" for _ in heads) + " | --- | --- | --- |",
    ]
    lines += [_line(row) for row in told["rows"]]
    ranking = told["ranking"]
    correlation = ranking["spearman"]
    lines += [
        f"\n{found['method']} less {found['rival']} of rate {found['rival_setting']:g}, paired by "
        "prompt: " + ", ".join(f"{_cell(more)} at {kl} nats" for kl, more in found["more"].items())
        for found in told["over_dpo_lora"]
    ]
    lines.append(
        f"\nRanking accuracy against reward at {ranking['kl']:g} nats, {len(ranking['runs'])} runs "
        f"({ranking['do_not_reach']} do not reach it): Spearman "
        + ("not told of so few" if correlation is None else f"{correlation:.2f}")
    )
    lines += [
        f"A token-wise head expresses {found['share']:.1%} of the shift of LoRA-DPO on held-out "
        f"tokens: KL per token {found['kl_base']:.4f} to the base, {found['kl_head']:.4f} to base "
        f"and head ({found['held_out_tokens']:,} tokens)"
        for found in told["share_of_dpo_lora"]
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    rate = "" if row["setting"] is None else f"{row['setting']:g}"
    if not row["chosen"]:
        rate += ", not chosen"
    elif rate and len(row["correlations"]) > 1:
        tried = ", ".join(f"{value:g}" for value in row["correlations"])
        rate += f" of {tried}"
    elif rate:
        rate += ", not tuned"
    if "reward_at" in row:
        cells = [_cell(row["reward_at"][f"{kl:g}"]) for kl in KLS]
        last = max(row["points"], key=lambda point: point["kl"])
        low, high = last["reward_interval"]
        far = f"{last['kl']:.1f}, {last['reward']:.2f} [{low:.2f}, {high:.2f}]"
    else:
        only = row["points"][0]
        low, high = only["reward_interval"]
        cells, far = [""] * len(KLS), f"0, {only['reward']:.2f} [{low:.2f}, {high:.2f}]"
    ranks = f"{row['accuracy']:.1%}" if "accuracy" in row else ""
    time = f"{row['time_over_base']:.2f}" if "time_over_base" in row else ""
    if row["method"] == BEST_OF_N.name:
        time = "n"
    counts = f"{len(row['seeds'])}, {row['prompts']} ({row['kl_prompts']})"
    return f"| {' | '.join([row['label'], rate, counts, *cells, far, ranks, time])} |"


def _cell(found: tuple[float, tuple[float, float] | None] | None) -> str:
    if found is None:
        return "not reached"
    value, bounds = found
    if bounds is None:
        return f"{value:.2f}"
    return f"{value:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]"
