"""What each run found, in a file of its own, and rows with intervals made of them.

Accuracies of several seeds. Held-out pairs are the sample; seeds are repeated looks at each of it.
So a pair counts with its mean over seeds, and the interval is Wilson's for as many pairs as would
give the variance these means have (Korn and Graubard 1998, "Confidence intervals for proportions
with small expected number of positive counts estimated from survey data"): for one seed it is the
plain Wilson interval, for several it is narrower just as far as seeds disagree. It speaks of the
mean over these seeds; how far seeds differ is listed under `reward_accuracy_by_seed`.
Margins and KL have the normal interval of the per-pair means.

`reward_accuracy` is about the policy that decodes, whatever the method: the share of pairs whose
chosen answer gained more log-probability over the base than the rejected one. An autoregressive
reward model is not a policy, so its row has two more: `own_reward_accuracy`, of log pi_r, the
reward it is trained to be, and `reward_over_base_accuracy`, of log pi_r - log pi_base.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.scoring import Scores
from mav.pipeline.evaluation.statistics import mean_interval, wilson

_PER_PAIR = (
    "chosen",
    "rejected",
    "tuned_chosen",
    "tuned_rejected",
    "base_chosen",
    "base_rejected",
    "kl",
)


def write_result(path: Path, values: dict[str, Any]) -> None:
    """Write a result so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a result, or None where it is not there yet."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def per_pair(scores: Scores) -> dict[str, list[float]]:
    """Return scores as JSON keeps them."""
    return {name: getattr(scores, name).tolist() for name in _PER_PAIR}


def accuracy_interval(correct_SP: Tensor) -> tuple[float, tuple[float, float]]:
    """Return the mean of correctness [seeds, pairs], 0 or 1, and its interval; see above."""
    means = correct_SP.double().mean(0)
    share, pairs = float(means.mean()), len(means)
    variance = float(means.var(unbiased=False))
    most = pairs * len(correct_SP)
    # Rounded, so that one seed's number of pairs comes out whole.
    spread = share * (1 - share)
    effective = spread * pairs / variance if variance > 0 else most if spread > 0 else pairs
    trials = max(1, min(most, round(effective)))
    return share, wilson(share * trials, trials)


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row from the results of its seeds."""
    first = results[0]
    columns = {
        name: torch.tensor([r["pairs"][name] for r in results], dtype=torch.float64)
        for name in _PER_PAIR
    }
    gain = columns["chosen"] - columns["base_chosen"]
    margin = gain - (columns["rejected"] - columns["base_rejected"])
    logp_accuracy, logp_interval = accuracy_interval(columns["chosen"] > columns["rejected"])
    kl, kl_interval = mean_interval(columns["kl"].mean(0))
    row: dict[str, Any] = {
        "row": first["row"],
        "method": first["method"],
        "seeds": [r["seed"] for r in results],
        "held_out_pairs": margin.shape[1],
        "logp_accuracy": logp_accuracy,
        "logp_accuracy_interval": logp_interval,
        "kl_per_token": kl,
        "kl_interval": kl_interval,
        "settings": first["settings"],
    }
    if first["method"] == "base":
        return row
    correct = margin > 0
    row["reward_accuracy"], row["reward_accuracy_interval"] = accuracy_interval(correct)
    row["reward_accuracy_by_seed"] = correct.double().mean(1).tolist()
    row["margin"], row["margin_interval"] = mean_interval(margin.mean(0))
    if first["method"] == "genarm":
        tuned = columns["tuned_chosen"] - columns["tuned_rejected"]
        against = tuned - (columns["base_chosen"] - columns["base_rejected"])
        for name, values in (("own_reward", tuned), ("reward_over_base", against)):
            row[f"{name}_accuracy"], row[f"{name}_accuracy_interval"] = accuracy_interval(
                values > 0
            )
    seconds = [r["training_seconds"] for r in results]
    preparation = first["preparation_seconds"]
    row |= {
        "trainable_parameters": first["trainable_parameters"],
        "training_seconds": sum(seconds) / len(seconds),
        "training_cpu_seconds": sum(r["training_cpu_seconds"] for r in results) / len(results),
        "preparation_seconds": preparation,
        "seconds_of_one_run": sum(seconds) / len(seconds) + preparation,
        "seconds_of_all_runs": sum(seconds) + preparation,
    }
    return row


def difference(row: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how much more accurate one row's rewards are than another's, pair by pair."""

    def correct(results: Sequence[dict[str, Any]]) -> Tensor:
        found = []
        for result in results:
            p = {k: torch.tensor(v, dtype=torch.float64) for k, v in result["pairs"].items()}
            gains = p["chosen"] - p["base_chosen"], p["rejected"] - p["base_rejected"]
            found.append((gains[0] > gains[1]).double())
        return torch.stack(found).mean(0)

    mean, interval = mean_interval(correct(row) - correct(other))
    return {"accuracy_difference": mean, "interval": interval}
